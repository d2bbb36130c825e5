"""The commands for pairs, as a user runs them one after another."""

import sys

import numpy as np
import pytest

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.tokenizer import train_tokenizer
from tests.tools.commands import tool


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a tool; its exit code and what it printed."""

    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        code = tool(name).main()
        shown = capsys.readouterr()
        return code, shown.out + (shown.err if code else "")

    return call


def test_merge_deduplicate_shuffle_split_and_look(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        with IndexedWriter(name, "uint16") as writer:
            for _ in range(200):
                writer.add_document(rng.integers(3, 280, rng.integers(1, 30)))
    assert run("merge_datasets", "--input", "a", "b", "--output-prefix", "ab")[0] == 0
    again = ("--input", "ab", "a", "--output-prefix", "new")
    assert run("deduplicate_dataset", *again)[0] == 0
    assert run("shuffle_dataset", "--input", "new", "--output-prefix", "mixed")[0] == 0
    shares = ("--split", "train=0.9", "valid=0.1")
    code, shown = run("split_dataset", "--input", "mixed", "--output-prefix", "my", *shares)
    assert code == 0
    counts = [IndexedDataset(f"my_{name}").document_count for name in ("train", "valid")]
    assert sum(counts) == IndexedDataset("new").document_count
    assert f"my_train.bin, .idx: {counts[0]} documents" in shown

    train_tokenizer(["some words to learn from\n" * 50], "m.model", vocab_size=280)
    options = ("--samples", 2, "--tokenizer-model", "m.model", "--verify")
    code, shown = run("dataset_info", "my_train", *options)
    assert code == 0
    assert f"{counts[0]:,} documents" in shown
    assert shown.count("tokens: '") == 2
    assert "checksums agree" in shown
    (tmp_path / "my_train.bin").write_bytes(b"\1" + (tmp_path / "my_train.bin").read_bytes()[1:])
    code, shown = run("dataset_info", "my_train", "--verify")
    assert code == 1
    assert "error: my_train.bin: CRC-32" in shown


def test_lengths_are_drawn(run, tmp_path):
    pytest.importorskip("matplotlib")
    with IndexedWriter(tmp_path / "a", "uint16") as writer:
        writer.add_documents(np.arange(100), [10, 90])
    assert run("dataset_info", tmp_path / "a", "--png", tmp_path / "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_mistake_is_one_line(run, tmp_path):
    code, shown = run("merge_datasets", "--input", tmp_path / "no", "--output-prefix", "x")
    assert code == 1
    assert shown.startswith("error: ")
    assert len(shown.splitlines()) == 1
