"""MB/s from JSON Lines to token ids: ours, plain sentencepiece and gigatoken alone, on one text.

    python -m benchmarks.preprocess
    python -m benchmarks.preprocess --input FILE.jsonl --tokenizer-model FILE.model

Without ``--input`` the text is the Python standard library's sources, one document each, and the
tokenizer has 4,096 pieces trained on them. "ours" is all of ``tools/preprocess_data.py`` after
Python has started: load the tokenizer, check and encode every record, write the pair, sync it to
disk. "sentencepiece" parses and encodes line by line and keeps the ids, as a loop or in a pool of
processes as Megatron-LM does. "gigatoken" is its ``encode_files``: no checks, nothing written, and
its own normalisation. MB are of the file. The fast ones take turns; figures are medians. MB per
CPU second counts the time of all threads and processes, and suffers less from a busy machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.report import facts, table, write_json
from megatron_ngpt.data.bulk import EncoderName
from megatron_ngpt.data.preprocess import PreprocessJob, preprocess
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer, train_tokenizer
from megatron_ngpt.extras import require


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        text, model = options.input, options.tokenizer_model
        if text is None:
            text, model = _standard_library(Path(folder), model)
        speeds = measure(text, model, Path(folder), options.workers, options.rounds)
        size = text.stat().st_size
    results = {**facts(torch.device("cpu")), "text_MB": size / 1e6}
    print(json.dumps(results))
    one, two = (speeds[f"sentencepiece, {n}"].wall for n in ("1 process", "2 processes"))
    rows = [
        [name, *(f"{value:.1f}" for value in (*speed, speed.wall / one, speed.wall / two))]
        for name, speed in speeds.items()
    ]
    print(table(["", "MB/s", "MB per CPU second", "times 1 process", "times 2 processes"], rows))
    write_json(options.json, results | {name: speed._asdict() for name, speed in speeds.items()})
    return 0


class Speed(NamedTuple):
    """MB per second, by the clock and of processor time."""

    wall: float
    cpu: float


def measure(text: Path, model: Path, folder: Path, workers: int, rounds: int) -> dict[str, Speed]:
    """Speed of each contestant."""

    def ours(encoder: EncoderName) -> None:
        names = dict(inputs=[str(text)], output_prefix=f"{folder}/made", tokenizer=str(model))
        job = PreprocessJob(**names, workers=workers, encoder=encoder, log_interval=10**9)
        preprocess(job, report=lambda line: None)

    slow: dict[str, Callable[[], None]] = {
        "sentencepiece, 1 process": lambda: _sentencepiece(text, model, 1),
        "sentencepiece, 2 processes": lambda: _sentencepiece(text, model, 2),
        "ours, --encoder sentencepiece": lambda: ours("sentencepiece"),
    }
    fast: dict[str, Callable[[], None]] = {
        "gigatoken": lambda: _gigatoken(text, model),
        "ours": lambda: ours("auto"),
    }
    spent: dict[str, list[Speed]] = {name: [] for name in (*slow, *fast)}
    for name, run in [*slow.items(), *fast.items()] + [*fast.items()] * (rounds - 1):
        spent[name].append(_spent(run))
    size = text.stat().st_size / 1e6
    return {
        name: Speed(*(size / statistics.median(seconds) for seconds in zip(*each, strict=True)))
        for name, each in spent.items()
    }


def _spent(run: Callable[[], None]) -> Speed:
    """Seconds, not MB per second."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    run()
    return Speed(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _gigatoken(text: Path, model: Path) -> None:
    gigatoken = require("gigatoken", "preprocess", "this benchmark")
    gigatoken.Tokenizer.from_sentencepiece(model).encode_files(gigatoken.JsonlFileSource([text]))


def _sentencepiece(text: Path, model: Path, processes: int) -> None:
    with text.open("rb") as lines:
        work = ((str(model), line) for line in lines)
        if processes == 1:
            _ = [_encode_line(item) for item in work]
        else:
            with get_context("spawn").Pool(processes) as pool:
                _ = list(pool.imap(_encode_line, work))


def _encode_line(work: tuple[str, bytes]) -> np.ndarray:
    model, line = work
    return np.array(_tokenizer(model).encode(json.loads(line)["text"]), np.int32)


@cache
def _tokenizer(model: str) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(model)


def _standard_library(folder: Path, model: Path | None) -> tuple[Path, Path]:
    """The standard library as JSON Lines, and a tokenizer unless there is one."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_bytes().decode(errors="ignore")
        if text and "site-packages" not in path.parts:
            texts.append(text)
    file = folder / "stdlib.jsonl"
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    if model is None:
        model = folder / "stdlib.model"
        train_tokenizer(texts, model, vocab_size=4096, max_lines=200_000)
    return file, model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", type=Path, metavar="FILE", help="JSON Lines with key text")
    parser.add_argument("--tokenizer-model", type=Path, metavar="FILE", help="SentencePiece .model")
    parser.add_argument("--workers", type=int, default=0, help="our threads [one per core]")
    parser.add_argument("--rounds", type=int, default=5, help="of the fast contestants [5]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
