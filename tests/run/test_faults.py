import json

import numpy as np
import pytest

from megatron_ngpt.data.left_out import in_samples, remaining
from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.faults import (
    FILE,
    Fault,
    Spikes,
    goes_on_at,
    left_out,
    read_faults,
    recent,
    record,
)


@pytest.mark.parametrize("holes", [(), ((0, 3),), ((2, 4), (4, 5), (9, 10)), ((7, 20), (30, 31))])
def test_the_samples_that_remain_are_all_but_those_left_out(holes):
    every = [n for n in range(60) if not any(a <= n < b for a, b in holes)]
    for consumed in range(35):
        found = remaining(consumed, 5, holes)
        assert found.tolist() == [n for n in every if n >= consumed][:5]
        assert found.dtype == np.int64


def test_ranges_of_tokens_are_whole_samples():
    assert in_samples([(32, 64), (65, 96)], 16) == [(2, 4), (4, 6)]


def test_faults_after_a_checkpoint_count_too(tmp_path):
    faults = [
        Fault(step=3, problem="loss is nan", action="skip", left_out=((24, 36),)),
        Fault(step=9, problem="x", action="rollback", left_out=((40, 60),), ranks=(1,)),
        Fault(step=9, problem="x", action="stop"),
    ]
    for fault in faults:
        record(tmp_path, fault)
    with (tmp_path / FILE).open("a") as stream:
        stream.write('{"step": 4, "prob')  # of a killed process
    assert read_faults(tmp_path) == faults
    record(tmp_path, faults[0])
    assert read_faults(tmp_path) == [*faults, faults[0]], "a torn line spoils no other"
    at = Progress(step=2, tokens=24, left_out=((0, 12), (36, 40)))
    assert left_out(at, faults) == ((0, 12), (24, 60))
    assert goes_on_at(at, faults) == 60
    assert goes_on_at(Progress(tokens=23), faults) == 23
    assert [recent(faults, step, 5) for step in (3, 8, 14)] == [2, 1, 0]
    assert json.loads((tmp_path / FILE).read_text().splitlines()[0])["loss"] is None


def test_a_spike_is_far_above_what_the_last_losses_vary_by():
    spikes = Spikes(6.0, 8, [3.0, 3.1, 2.9, 3.0, 3.1, 2.9, 3.0])
    assert spikes.problem(9.0) == "", "too few losses so far"
    spikes.add(3.1)
    # median 3.0; distances 0 0 0 .1 .1 .1 .1 .1, of which the median is 0.1
    assert spikes.score(3.0 + 0.14826 * 5) == pytest.approx(5, rel=1e-6)
    assert spikes.problem(3.0 + 0.14826 * 5.9) == ""
    assert "6.1 deviations above the median 3 of the last 8" in spikes.problem(3.0 + 0.14826 * 6.1)
    assert spikes.problem(0.5) == "", "below is none"
    assert spikes.problem(float("inf")) == "loss is inf"
    assert Spikes(0.0, 8, [1.0] * 8).problem(99.0) == ""
    assert Spikes(6.0, 8, [1.0] * 8).problem(1.0) == "", "a loss that does not move at all"
