"""Ranks are killed at random instants, and nothing of the result changes."""

import pytest

from megatron_ngpt.soak.soak import Soak


def _soaked(folder, kills: int, **options) -> Soak:
    soak = Soak(folder, kills, tell=lambda _: None, **options)
    soak.go()
    return soak


@pytest.mark.slow
def test_killed_a_few_times_it_ends_the_same(tmp_path):
    counts = _soaked(tmp_path, kills=2, kinds=("kill",), steps=8, seed=5).counts
    assert counts["kills"] >= 2
    assert counts["runs that ended bit-equal"] == counts["runs"] >= 1


@pytest.mark.slow
def test_twenty_kills_and_every_other_fault(tmp_path):
    soak = _soaked(tmp_path, kills=20, seed=3)
    assert soak.counts["kills"] >= 20
    assert len(soak.killed_while) >= 3, soak.killed_while
