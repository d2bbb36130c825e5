"""Factors of curves whose answer is known."""

import math

import numpy as np
import pytest

from megatron_ngpt.study.factor import factors, mean_and_interval, mean_curve, tokens_at

TOKENS = [100 * 2**n for n in range(8)]


def curve(speed: float = 1.0, offset: float = 0.0):
    """A loss that falls with the logarithm of speed * tokens."""
    return [[t, 10 - math.log(speed * t) + offset] for t in TOKENS]


@pytest.mark.parametrize("speed", [1.0, 1.5, 4.0])
def test_the_factor_of_a_curve_that_is_so_many_times_faster(speed):
    found = factors([curve()], [curve(speed)])
    within = [f.factor for f in found if math.isfinite(f.factor)]
    # what the faster one passed before its first evaluation is not known
    assert len(within) == len(TOKENS) - math.ceil(math.log2(speed))
    assert within == pytest.approx([speed] * len(within))
    assert all(math.isnan(f.low) for f in found)  # one seed says nothing of its spread


def test_the_band_holds_what_seeds_say_and_no_more():
    seeds = [curve(2.0, offset) for offset in (-0.1, 0.0, 0.1)]
    *_, last = (f for f in factors([curve()], seeds) if math.isfinite(f.factor))
    assert last.factor == pytest.approx(2.0)
    assert 2 * math.exp(-0.1) - 1e-9 <= last.low < 1.9
    assert 2.1 < last.high <= 2 * math.exp(0.1) + 1e-9


def test_many_seeds_are_drawn_at_random_the_same_way_each_time():
    random = np.random.default_rng(3)
    seeds = [curve(2.0, random.normal(0, 0.05)) for _ in range(7)]
    one, again = factors(seeds, seeds), factors(seeds, seeds)
    assert one[3] == again[3]
    assert one[3].low < 1 < one[3].high
    # at the end half of the drawn curves never come so far down: how small it may be is not known
    assert math.isnan(one[-1].low)
    assert one[-1].high > 1


def test_tokens_between_evaluations_and_outside_of_them():
    points = np.array([[100.0, 5.0], [400.0, 3.0]])
    assert tokens_at(points, 4.0) == pytest.approx(200.0)
    assert tokens_at(points, 5.0) == 100.0
    assert tokens_at(points, 5.1) == 0
    assert tokens_at(points, 2.9) == math.inf


def test_a_bump_does_not_undo_what_was_reached():
    points = np.array([[100.0, 5.0], [200.0, 3.0], [400.0, 4.0], [800.0, 2.0]])
    assert tokens_at(points, 3.0) == pytest.approx(200.0)
    assert 400 < tokens_at(points, 2.5) < 800


def test_means_are_over_common_evaluations():
    assert mean_curve([[[1, 2.0], [2, 1.0]], [[2, 3.0], [3, 0.0]]]).tolist() == [[2.0, 2.0]]
    with pytest.raises(ValueError, match="in common"):
        mean_curve([[[1, 2.0]], [[2, 3.0]]])


def test_interval_of_three_values():
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert math.isnan(mean_and_interval([1.0])[1])
