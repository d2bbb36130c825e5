"""Ranks are killed at random instants, and nothing of the result changes."""

import pytest

from megatron_ngpt.soak.soak import Soak


def _soaked(folder, kills: int, **options) -> Soak:
    soak = Soak(folder, kills, tell=lambda _: None, **options)
    soak.go()
    return soak


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(tmp_path):
    counts = _soaked(tmp_path, kills=8, kinds=("kill", "clock"), steps=12, seed=5).counts
    assert counts["kills"] >= 8
    assert counts["runs that ended bit-equal"] == counts["runs"] >= 1


@pytest.mark.slow
def test_with_every_other_fault(tmp_path):
    soak = _soaked(tmp_path, kills=30, seed=3)
    assert soak.counts["kills"] >= 30
    assert len(soak.killed_while) >= 4, soak.killed_while
    assert any(name.startswith("files of a checkpoint") for name in soak.counts)
