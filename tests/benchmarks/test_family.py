"""The benchmarks of the family run, and what they tell adds up; never how fast anything is."""

import itertools
import json
from argparse import Namespace

import pytest
import torch

from benchmarks import kinds, optimum, transfer


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


def test_transfer(tmp_path, capsys):
    words = ["--widths", "16", "32", "--steps", "3", "--seeds", "1", "2", "--per-octave", "1"]
    words += ["--json", str(tmp_path / "t.json"), "--plot", str(tmp_path / "t.svg")]
    assert transfer.main(words) == 0
    told = capsys.readouterr().out
    curves = json.loads((tmp_path / "t.json").read_text())["curves"]
    assert [(c["seed"], c["name"], c["width"]) for c in curves] == list(
        itertools.product((1, 2), ("ngpt", "nugpt"), (16, 32))
    )
    assert "| ngpt 16 |" in told
    assert "nugpt: " in told
    assert (tmp_path / "t.svg").stat().st_size > 1000


def test_transfer_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    words = [
        "--steps",
        "3",
        "--per-octave",
        "1",
        "--json",
        str(tmp_path / "t.json"),
        "--seeds",
        "1",
    ]
    assert transfer.main([*words, "--widths", "16"]) == 0
    few = json.loads((tmp_path / "t.json").read_text())["curves"]
    trained = []
    train = transfer.train
    monkeypatch.setattr(
        transfer, "train", lambda c, t: trained.append(c.model.width) or train(c, t)
    )
    assert transfer.main([*words, "--widths", "16", "32"]) == 0
    assert set(trained) == {32}
    more = json.loads((tmp_path / "t.json").read_text())["curves"]
    assert [curve for curve in more if curve["width"] == 16] == few
    with pytest.raises(ValueError, match="of a run with other settings"):
        transfer.main([*words, "--batch", "2"])


def test_both_parametrisations_start_alike_at_the_reference():
    """The same weights; stored scales differ, effective ones do not."""
    losses = []
    text = torch.arange(2000) % 256
    for name in ("ngpt", "nugpt"):
        options = Namespace(steps=1, batch=8)
        config = transfer.configuration(name, 32, 0.01, options, 32, seed=1)
        losses += transfer.train(config, text)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_walk_ends_around_the_bottom_and_the_parabola_finds_it():
    for start in (-12.0, -4.7, 3.0):
        losses = optimum.walk(lambda x: (x + 4.7) ** 2, start, per_octave=2)
        assert optimum.bottom(losses) == pytest.approx(-4.7)
    with pytest.raises(ValueError, match="no bottom in 9 points"):
        optimum.walk(lambda x: -x, 0.0, per_octave=2, limit=9)


def test_drift_and_its_error():
    assert optimum.drift([32, 64, 256], [-5.0, -5.5, -6.5]) == pytest.approx(-0.5)
    assert optimum.mean_and_error([1.0, 3.0]) == pytest.approx((2.0, 1.0))
