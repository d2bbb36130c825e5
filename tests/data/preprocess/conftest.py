"""A corpus of several files of all kinds, and jobs on it."""

import gzip
import json
import random

import pytest

from megatron_ngpt.data.preprocess import PreprocessJob, preprocess


@pytest.fixture
def mixed(tmp_path):
    """Plain and compressed JSON Lines with some records that cannot be used, in a folder."""
    rng, folder = random.Random(0), tmp_path / "mixed"
    folder.mkdir()
    words = ("some", "words", "of", "a", "text", "that", "goes", "on", "for", "a", "while")
    for number in range(4):
        lines = [
            json.dumps({"text": " ".join(rng.choices(words, k=rng.randrange(1, 60))), "n": "x y"})
            for _ in range(150)
        ]
        lines[40 + number] = "{}"
        content = "\n".join(lines).encode() + b"\n"
        name = f"{number}.jsonl{'.gz' if number == 2 else ''}"
        (folder / name).write_bytes(gzip.compress(content) if number == 2 else content)
    return folder


@pytest.fixture
def job_of(tokenizer, mixed, tmp_path):
    """Make a job whose output goes to a folder of its own."""

    def make(folder="out", **options):
        defaults = dict(
            inputs=[str(mixed)],
            output_prefix=f"{tmp_path / folder}/corpus",
            tokenizer=str(tokenizer.path),
            on_error="skip",
            json_keys=["text", "n"],
        )
        return PreprocessJob(**defaults | options)

    return make


@pytest.fixture
def whole(job_of, tmp_path):
    """All files that the job makes in one shard and one process, by name."""
    preprocess(job_of("whole", shard_mb=1000), report=lambda line: None)
    return {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
