"""Numbers, paths and names as people write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ngpt.config import load_config, parse_config, save_config
from megatron_ngpt.config.words import tokens_of


@pytest.fixture
def scratch(monkeypatch):
    monkeypatch.setenv("NGPT_SCRATCH", "/fast disk")
    monkeypatch.delenv("NGPT_UNSET", raising=False)
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$NGPT_SCRATCH/run", "/fast disk/run"),
        ("${NGPT_SCRATCH}-2/run", "/fast disk-2/run"),
        ("${NGPT_SCRATCH:-/slow}/run", "/fast disk/run"),
        ("${NGPT_UNSET:-/slow}/run", "/slow/run"),
        ("~/run", "/home/me/run"),
        ("a~b", "a~b"),
        ("$$5/run", "$5/run"),
        ("runs/x", "runs/x"),
    ],
)
def test_paths_expand(scratch, yaml_file, tmp_path, written, meant):
    path = yaml_file(
        f"logging: {{dir: '{written}'}}\n"
        f"data: {{valid: '{written}', train: [{{prefix: '{written}', weight: 2}}],"
        f" stages: [{{tokens: 4, train: [{{prefix: '{written}'}}]}}]}}\n"
    )
    found = load_config(path)
    blend = f"[{{prefix: '{written}', weight: 2}}]"
    stages = f"[{{tokens: 4, train: [{{prefix: '{written}'}}]}}]"
    asked = ["--logging.dir", written, "--data.valid", written]
    assert parse_config([*asked, f"--data.train={blend}", "--data.stages", stages]) == found
    assert (found.logging.dir, found.data.valid) == (meant, meant)
    assert found.data.train[0].prefix == found.data.stages[0].train[0].prefix == meant
    save_config(found, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == found


def test_unset_variable_is_named(scratch, refused, yaml_file):
    says = "logging.dir = $NGPT_UNSET/x: NGPT_UNSET is not set: export it"
    assert says in refused("--logging.dir", "$NGPT_UNSET/x")
    assert says in refused("--config", yaml_file("logging: {dir: $NGPT_UNSET/x}\n"))
    assert "logging.dir = a$/x: write $VAR" in refused("--logging.dir", "a$/x")


@pytest.mark.parametrize("number", ["1000", "1_000", "1e3", "1E+3", "1000.0"])
def test_whole_numbers(yaml_file, number):
    assert parse_config(["--train.steps", number]).train.steps == 1000
    found = load_config(yaml_file(f"train: {{steps: {number}}}\n")).train.steps
    assert (found, type(found)) == (1000, int)


def test_units_of_tokens(yaml_file):
    text = "data: {seq_len: 4k, shuffle_unit: 8k, stages: [{tokens: 2M, seq_len: 8K}]}\n"
    data = load_config(yaml_file(text + "train: {global_batch: 8}\n")).data
    assert (data.seq_len, data.shuffle_unit) == (4096, 8192)
    assert (data.stages[0].tokens, data.stages[0].seq_len) == (2 << 20, 8192)
    assert parse_config(["--data.seq_len", "2k"]).data.seq_len == 2048
    assert [tokens_of(word) for word in ("512", "2k", "1M", "1g")] == [512, 2048, 1 << 20, 1 << 30]


@pytest.mark.parametrize("wrong", ["4q", "0", "k", "-2k", "1.5k", ""])
def test_no_number_of_tokens(wrong):
    with pytest.raises(ValueError, match="give a number of tokens"):
        tokens_of(wrong)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train.steps", "4k"], ["train.steps", "int", "4k"]),
        (["--train.steps", "0123"], ["train.steps = 0123", "leading zero"]),
        (["--optim.lr", ".inf"], ["optim.lr = inf", "finite"]),
        (["--optim.betas", "[0.9, .nan]"], ["optim.betas[1] = nan", "finite"]),
        (["--optim.learning_rate", "1"], ["did you mean --optim.lr?"]),
        (["--model.hidden-size", "1"], ["did you mean --model.width?"]),
        (["--optim.global_batch", "1"], ["did you mean --train.global_batch?"]),
    ],
)
def test_words_that_are_refused(refused, words, says):
    message = refused(*words)
    assert all(part in message for part in says), message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train:\n  steps: 8\n  seed: 2\n  steps: 9\n", ["line 4: steps", "given in line 2"]),
        ("train: {steps: 8, steps: 8}\n", ["line 1: steps", "given in line 1"]),
        ("train: {steps: 8}\noptim: {}\ntrain: {seed: 1}\n", ["line 3: train", "in line 1"]),
        ("train: {steps: 0123}\n", ["line 1: 0123", "leading zero"]),
        ("optim: {lr: .inf}\n", ["optim.lr = inf", "finite"]),
        ("optim: {learning_rate: 1}\n", ["did you mean --optim.lr?"]),
        ("", ["holds no settings"]),
        ("# all\n# comments\n", ["holds no settings"]),
        ("just words\n", ["holds no settings"]),
    ],
)
def test_files_that_are_refused(refused, yaml_file, text, says):
    path = yaml_file(text)
    message = refused("--config", path)
    assert all(part in message for part in says), message
    if "did you" not in message and "finite" not in message:
        assert f"--config {path}: " in message


def test_merge_keys_may_be_overridden(yaml_file):
    text = "train:\n  <<: {steps: 3, seed: 4}\n  steps: 9\n"
    train = load_config(yaml_file(text)).train
    assert (train.steps, train.seed) == (9, 4)


def test_dates_and_times_stay_words(yaml_file):
    found = load_config(yaml_file("logging: {dir: 2026-11-28}\ntrain: {exit_after: 90}\n"))
    assert (found.logging.dir, found.train.exit_after) == ("2026-11-28", "90")


def test_usage_names_the_program():
    code = "import sys; from megatron_ngpt.config import parse_config; parse_config(sys.argv[1:])"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-", "--train.step", "3"],
        input=code,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 2
    assert "usage: pretrain_ngpt.py --config" in done.stderr
