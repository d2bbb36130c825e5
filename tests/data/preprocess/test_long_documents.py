"""Documents too long for memory give the ids they would give in one piece."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ngpt.data.bulk import GigatokenEncoder, SentencePieceEncoder
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.preprocess import PreprocessJob, long_documents, preprocess
from megatron_ngpt.data.sources import jsonl, long, long_json

TOOL = Path(__file__).resolve().parents[3] / "tools/preprocess_data.py"


# Peak memory of a command in KiB. Between it and pytest stands a small process: a child's peak
# begins with its parent's.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture
def small(monkeypatch):
    """Texts from 2,000 bytes on are long and encoded in parts of about 1,500."""
    for module in (jsonl, long):
        monkeypatch.setattr(module, "LONG", 2000)
    monkeypatch.setattr(long_json, "_PART", 700)
    monkeypatch.setattr(long_documents, "_AROUND", 60)
    monkeypatch.setattr(long_documents, "_SEARCHED", 700)
    for encoder in (GigatokenEncoder, SentencePieceEncoder):
        monkeypatch.setattr(encoder, "batch_bytes", 1500)


def run(tokenizer, path, prefix, **options):
    job = PreprocessJob(
        inputs=[str(path)], output_prefix=str(prefix), tokenizer=str(tokenizer.path), **options
    )
    return preprocess(job, report=lambda line: None)


KINDS = {
    "keeps white space": dict(normalization_rule_name="identity", remove_extra_whitespaces=False),
    "trims and rewrites": dict(normalization_rule_name="nmt_nfkc"),
    "no space in front": dict(add_dummy_prefix=False, normalization_rule_name="nfkc"),
    "unigram": dict(model_type="unigram", vocab_size=400),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole(small, make_tokenizer, texts, odd_texts, tmp_path, kind):
    tokenizer, rng = make_tokenizer(**KINDS[kind]), random.Random(0)
    words = " ".join(texts).split(" ")
    odd = [" ".join(rng.choices([*odd_texts[:300], *words], k=1500)) for _ in range(3)]
    documents = ["short", *texts, " ".join(rng.choices(words, k=3000)), *odd, "end"]
    # three odd characters may be normalised to nothing, which is refused
    short = [f"n{text[:3]}" for text in documents]
    path = tmp_path / "corpus.jsonl"
    lines = ({"text": text, "n": n} for text, n in zip(documents, short, strict=True))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run(tokenizer, path, tmp_path / "out", json_keys=["text", "n"], append_eod=True)
    assert summary.documents == len(documents)
    made = [IndexedDataset(tmp_path / f"out_{key}_document") for key in ("text", "n")]
    for dataset, expected in zip(made, (documents, short), strict=True):
        for number, text in enumerate(expected):
            assert dataset.document(number).tolist() == [*tokenizer.encode(text), tokenizer.eos_id]


def test_a_text_without_a_place_to_cut_is_refused(small, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(long_documents, "_LONGEST_PART", 4000)
    path = tmp_path / "corpus.jsonl"
    lines = ({"text": text} for text in ("before", "x" * 9000, "after"))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run(tokenizer, path, tmp_path / "out", on_error="skip")
    assert summary.refused == {"too long": 1}
    assert "9000" not in str(summary.first_refusals)
    assert summary.first_refusals[0].line == 2
    assert IndexedDataset(tmp_path / "out_text_document").document_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("format", ["jsonl", "text"])
def test_memory_does_not_grow_with_a_document(make_tokenizer, tmp_path, format):
    """600 MB on one line, or in one file, in less than its own size. Measured: 280 MB."""
    tokenizer = make_tokenizer(vocab_size=500)
    words = (
        "some words that go on and on for a long while\\n" if format == "jsonl" else "a word " * 9
    )
    path = tmp_path / "long"
    with path.open("w") as file:
        file.write('{"text": "' * (format == "jsonl"))
        for _ in range(600):
            file.write((words * 30_000)[: 10**6].rsplit(" ", 1)[0] + " ")
        file.write('"}\n' * (format == "jsonl"))
    command = [sys.executable, TOOL, "--input", path, "--format", format, "--workers", "2"]
    command += ["--tokenizer-model", tokenizer.path, "--output-prefix", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 500e6, done.stdout
    assert IndexedDataset(tmp_path / "out_text_document").document_count == 1
