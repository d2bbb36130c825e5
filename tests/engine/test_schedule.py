import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.config import Config, OptimConfig, TrainConfig
from megatron_ngpt.engine.schedule import angle_cap, learning_rate


def curve(schedule, steps=20, **optim):
    config = Config(
        optim=OptimConfig(lr=1.0, min_lr=0.1, schedule=schedule, **optim),
        train=TrainConfig(steps=steps),
    )
    return [learning_rate(config, step) for step in range(steps)]


DECAYING = ["cosine", "linear", "wsd", "logarithmic"]


@pytest.mark.parametrize("schedule", DECAYING)
@pytest.mark.parametrize("warmup", [0, 1, 5, 19])
@pytest.mark.parametrize("decay", [0, 1])
def test_decay_begins_at_lr_and_ends_at_min_lr_with_the_last_step(schedule, warmup, decay):
    rates = curve(schedule, warmup_steps=warmup, decay_steps=decay)
    assert max(rates) == rates[max(0, warmup - 1)] == 1.0
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", [*DECAYING, "constant"])
def test_warm_up_rises_evenly_from_0(schedule):
    assert curve(schedule, warmup_steps=4)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_constant_stays():
    assert curve("constant") == [1.0] * 20


def test_linear_is_straight():
    rates = curve("linear", steps=10)
    assert rates == pytest.approx([1 - 0.1 * step for step in range(10)])


def test_cosine_is_symmetric_about_its_middle():
    rates = curve("cosine", steps=21)
    assert rates[10] == pytest.approx(0.55)
    assert [a + b for a, b in zip(rates, reversed(rates), strict=True)] == pytest.approx([1.1] * 21)
    assert rates[1] > curve("linear", steps=21)[1]


@pytest.mark.parametrize("curvature", [0.01, 0.1, 10.0])
def test_logarithmic_decay_by_its_formula(curvature):
    """The smaller the curvature, the faster at first; a large one is nearly straight."""
    rates = curve("logarithmic", steps=11, curvature=curvature)
    whole = math.log(1 + 1 / curvature)
    expected = [0.1 + 0.9 * (1 - math.log(1 + n / 10 / curvature) / whole) for n in range(11)]
    assert rates == pytest.approx(expected)
    assert rates[1] < 0.96 * curve("linear", steps=11)[1] or curvature == 10


@pytest.mark.parametrize(("decay", "last_at_lr"), [(5, 14), (0, 15), (19, 0), (1, 18)])
def test_wsd_falls_over_its_last_decay_steps(decay, last_at_lr):
    """0 stands for a fifth of the run, which is 4."""
    rates = curve("wsd", decay_steps=decay)
    length = 19 - last_at_lr
    falling = [1 - 0.9 * (step + 1) / length for step in range(length)]
    assert rates == pytest.approx([1.0] * (last_at_lr + 1) + falling)


@pytest.mark.parametrize("schedule", [*DECAYING, "constant"])
def test_a_run_of_one_step_uses_lr(schedule):
    assert curve(schedule, steps=1) == [1.0]


@given(
    schedule=st.sampled_from([*DECAYING, "constant"]),
    steps=st.integers(1, 50),
    data=st.data(),
)
def test_rises_then_falls_within_bounds_and_stays_there_after_the_end(schedule, steps, data):
    warmup = data.draw(st.integers(0, steps))
    decay = data.draw(st.integers(0, steps - warmup))
    optim = OptimConfig(
        lr=1.0, min_lr=0.1, schedule=schedule, warmup_steps=warmup, decay_steps=decay
    )
    config = Config(optim=optim, train=TrainConfig(steps=steps))
    rates = [learning_rate(config, step) for step in range(steps + 5)]
    peak = max(0, warmup - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(0.1 - 1e-12 <= rate <= 1.0 for rate in rates[warmup:])
    assert len(set(rates[steps:])) == 1


def test_the_angle_cap_stays_or_follows_the_learning_rate():
    optim = {"lr": 0.02, "angle_cap": 0.1}
    stays = Config(optim=OptimConfig(**optim))
    follows = Config(optim=OptimConfig(**optim, angle_cap_schedule="learning_rate"))
    assert [angle_cap(stays, lr) for lr in (0.02, 0.005, 0.0)] == [0.1] * 3
    assert [angle_cap(follows, lr) for lr in (0.02, 0.005, 0.0)] == pytest.approx([0.1, 0.025, 0])
    assert angle_cap(Config(), 0.02) == 0
