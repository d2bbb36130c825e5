"""Time that makes progress: the formula against failures played through one by one."""

import math
from statistics import mean

import pytest

from megatron_ngpt.estimate.goodput import Failures, best_interval, progress, simulate, young

LARGE = Failures(nodes=64, per_node_day=0.05, queue=3600, start=120, stall=2, write=60)
JOBS = [
    LARGE,
    Failures(nodes=512, per_node_day=0.01, queue=600, start=180, stall=5, write=30),
    Failures(nodes=2048, per_node_day=0.0038, queue=120, start=300, stall=3, write=40),
    Failures(nodes=8, per_node_day=0.01, queue=0, start=60, stall=30, write=0),
]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("times", [0.3, 1, 4])
def test_the_formula_tells_what_happens(job, times):
    """Twenty jobs of 10,000 node-days; 0.003 is three times what they scatter by."""
    interval = times * best_interval(job, 1.0)
    played = mean(simulate(job, interval, 10_000, seed) for seed in range(20))
    assert progress(job, interval) == pytest.approx(played, abs=0.003)


@pytest.mark.parametrize("job", JOBS)
def test_the_best_interval_is_the_best(job):
    found = best_interval(job, 10.0)
    every = range(max(1, math.ceil((job.write - job.stall) / 10)), 3000)
    assert found == max(every, key=lambda steps: progress(job, 10.0 * steps))


def test_rare_failures_are_youngs():
    rare = Failures(nodes=1, per_node_day=1e-3, queue=60, start=10, stall=5, write=0)
    assert best_interval(rare, 1.0) == pytest.approx(young(rare), rel=0.01)


def test_hopeless_and_faultless():
    hopeless = Failures(nodes=10**6, per_node_day=1, queue=0, start=6000, stall=1, write=0)
    assert progress(hopeless, 1000) == 0
    assert simulate(hopeless, 1000, 10**4, 1) == 0
    never = Failures(nodes=4, per_node_day=0, queue=0, start=6, stall=1, write=0)
    assert progress(never, 99) == 0.99
    assert simulate(never, 99, 1000, 1) == pytest.approx(0.99, abs=1e-4)
