"""The benchmarks of the family run, and what they tell adds up; never how fast anything is."""

import json

import pytest
import torch

from benchmarks import kinds, transfer


def test_kinds(tmp_path, capsys):
    assert kinds.main(["--preset", "toy", "--steps", "1", "--json", str(tmp_path / "k.json")]) == 0
    told = capsys.readouterr().out
    runs = json.loads((tmp_path / "k.json").read_text())["runs"]
    assert [run["kind"] for run in runs] == list(kinds.KINDS) * 2
    assert "| ngpt ensemble of 5 |" in told
    for standard, *others in (runs[:4], runs[4:]):
        for run in others:
            assert run["parameters"] == pytest.approx(standard["parameters"], rel=0.01)
            # two to five maps of half as many heads, twice as wide
            assert 1 < run["flops_per_token"] / standard["flops_per_token"] < 1.3
            assert 1.2 < run["kept_bytes"] / standard["kept_bytes"] < 2


def test_transfer(capsys):
    words = ["--widths", "16", "32", "--lrs", "0.01", "0.02", "--steps", "3"]
    assert transfer.main(words) == 0
    told = capsys.readouterr().out
    assert "| ngpt 16 |" in told
    assert "| nugpt 32 |" in told


def test_both_parametrisations_start_alike_at_the_reference():
    """The same weights; stored scales differ, effective ones do not."""
    losses = []
    text = torch.arange(2000) % 256
    for name in ("ngpt", "nugpt"):
        config = transfer.configuration(name, 32, 0.01, 1, 32, seed=1)
        losses += transfer.train(config, text)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_best_is_at_the_bottom_of_the_parabola():
    lrs = [2.0**n for n in range(-8, 0)]
    losses = [(n + 4.7) ** 2 for n in range(-8, 0)]
    assert transfer.best(lrs, losses) == pytest.approx(2**-4.7)
    assert transfer.best(lrs, sorted(losses)) == lrs[0]
