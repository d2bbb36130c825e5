"""Text of a study to a tokenizer and two pairs, made once by the ordinary tools."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LINES = 200_000
"""Of the text, drawn at random, that the tokenizer is trained on: a minute, whatever its size."""

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@dataclass(frozen=True)
class Corpus:
    """What every run of a study reads."""

    train: Path
    valid: Path
    """Prefixes of pairs."""
    tokenizer: Path

    @property
    def digest(self) -> str:
        """Of the tokens, not of where they lie: from the checksums in the pairs' manifests."""
        sums = []
        for prefix in (self.train, self.valid):
            text = Path(f"{prefix}.manifest.json").read_text(encoding="utf-8")
            sums.append(json.loads(text)["crc32"])
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    folder: Path,
    train: Sequence[str],
    valid: Sequence[str],
    vocab_size: int,
    log: Path,
    format_: str = "jsonl",
) -> Corpus:
    """Train the tokenizer and encode both texts, unless that is done.

    Args:
        folder: where they go.
        train: files of text, as ``preprocess_data.py --input`` takes them; also for the tokenizer.
        valid: other documents, for the validation loss.
        vocab_size: pieces of the tokenizer.
        log: file for what the tools print.
        format_: of the files, as ``preprocess_data.py --format`` takes it.

    Raises:
        ValueError: a tool could not use the text; its last line is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(
        folder / "train_text_document", folder / "valid_text_document", folder / "tokenizer.model"
    )
    if not corpus.tokenizer.exists():
        words = ["--format", format_, "--input", *train, "--vocab-size", str(vocab_size)]
        words += ["--max-lines", str(LINES), "--output", str(corpus.tokenizer)]
        call("train_tokenizer.py", words, log)
    for prefix, inputs in ((corpus.train, train), (corpus.valid, valid)):
        if not Path(f"{prefix}.manifest.json").exists():
            words = ["--format", format_, "--input", *inputs]
            words += ["--tokenizer-model", str(corpus.tokenizer)]
            name = str(prefix).removesuffix("_text_document")
            call("preprocess_data.py", [*words, "--append-eod", "--output-prefix", name], log)
    return corpus


def call(name: str, words: Sequence[str], log: Path) -> None:
    """Run one of tools/, what it prints into a log.

    Raises:
        ValueError: it failed; its last line is in the message.
    """
    command = [sys.executable, str(TOOLS / name), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(done.stdout)
    if done.returncode:
        last = (done.stdout.strip() or "no output").splitlines()[-1]
        raise ValueError(f"{name} could not do its part of the study: {last} (all of it in {log})")
