"""MB/s, tokens/s, memory from JSON Lines to ids: ours, sentencepiece, tokenizers, gigatoken.

    python -m benchmarks.preprocess
    python -m benchmarks.preprocess --input FILE.jsonl --tokenizer-model FILE.model
    python -m benchmarks.preprocess --megatron ~/Megatron-LM
    python -m benchmarks.preprocess --fast

Without ``--input`` the text is the Python standard library's sources, one document each, and the
tokenizer has 4,096 pieces trained on them. "ours" is all of ``tools/preprocess_data.py`` after
Python has started: load the tokenizer, check and encode every record, write shards and pair, sync
them to disk. "sentencepiece" parses and encodes line by line and keeps the ids, as a loop or in a
pool of processes as Megatron-LM does. "tokenizers" is Hugging Face's library with the same pieces,
batches of 1,000 lines, its own threads. "gigatoken" is its ``encode_files``: no checks, nothing
written, its own normalisation. Megatron-LM's tool runs from a checkout, with Python's start; what
that checkout needs has to be installed. ``--fast`` measures gigatoken and ours alone.

MB are of the file. The fast ones take turns; figures are medians. The last lines are the speed of
ours divided by gigatoken's, round by round. MB per CPU second counts the time of all threads and
processes, and suffers less from a busy machine. Every run has a process of its own; memory is what
it grows by while it works, of its largest process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.measure import ratio
from benchmarks.report import facts, table, write_json
from megatron_ngpt.data.bulk import EncoderName
from megatron_ngpt.data.indexed import IndexedDataset
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
        spent = measure(text, model, Path(folder), options)
        tokens = IndexedDataset(f"{folder}/made_text_document").token_count
        size = text.stat().st_size / 1e6
    speeds = {name: _median(rounds, size) for name, rounds in spent.items()}
    quotients = _quotients(spent["gigatoken"], spent["ours"])
    results = {**facts(torch.device("cpu")), "text_MB": size, "tokens": tokens, **quotients}
    print(json.dumps(results))
    print(_table(speeds, tokens / size / 1e6))
    for name, quotient in quotients.items():
        print(f"{name}: {quotient['median']:.2f} ({quotient['q25']:.2f} to {quotient['q75']:.2f})")
    write_json(options.json, results | {name: speed._asdict() for name, speed in speeds.items()})
    return 0


class Spent(NamedTuple):
    """Seconds, by the clock and of processors, or MB per such second; and MB of memory."""

    wall: float
    cpu: float
    memory: float


def measure(
    text: Path, model: Path, folder: Path, options: argparse.Namespace
) -> dict[str, list[Spent]]:
    """What each contestant takes, by round."""
    # Imported before the processes fork: a job pays for it once, and this text is small.
    for module in ("gigatoken", "awkward", "tokenizers"):
        require(module, "preprocess", "this benchmark")
    gc.freeze()  # no contestant's process would have torch to look through
    ours = partial(_ours, text, model, folder, options.workers)
    slow: dict[str, Callable[[], None]] = {
        "sentencepiece, 1 process": partial(_sentencepiece, text, model, 1),
        "sentencepiece, 2 processes": partial(_sentencepiece, text, model, 2),
        "ours, --encoder sentencepiece": partial(ours, "sentencepiece"),
        "tokenizers": partial(_tokenizers, text, model),
    }
    if options.fast:
        slow = {}
    if options.megatron:
        slow["Megatron-LM, 2 processes"] = partial(_megatron, options.megatron, text, model, folder)
    fast: dict[str, Callable[[], None]] = {
        "gigatoken": partial(_gigatoken, text, model),
        "ours": partial(ours, "auto"),
    }
    spent: dict[str, list[Spent]] = {name: [] for name in (*slow, *fast)}
    for name, run in [*slow.items(), *fast.items()] + [*fast.items()] * (options.rounds - 1):
        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            spent[name].append(pool.submit(_spent, run).result())
    return spent


def _median(rounds: Sequence[Spent], size: float) -> Spent:
    """Speeds of a text of ``size`` MB."""
    wall, cpu, memory = (statistics.median(values) for values in zip(*rounds, strict=True))
    return Spent(size / wall, size / cpu, memory)


def _quotients(gigatoken: Sequence[Spent], ours: Sequence[Spent]) -> dict[str, dict[str, float]]:
    return {
        f"speed of ours / gigatoken, {label}": ratio(
            [getattr(spent, kind) for spent in gigatoken], [getattr(spent, kind) for spent in ours]
        )
        for kind, label in (("wall", "by the clock"), ("cpu", "by CPU time"))
    }


def _table(speeds: dict[str, Spent], tokens_per_byte: float) -> str:
    one = speeds.get("sentencepiece, 1 process")
    rows = []
    for name, speed in speeds.items():
        times = f"{speed.wall / one.wall:.1f}" if one else ""
        numbers = (f"{n:.1f}" for n in (speed.wall, speed.cpu, speed.wall * tokens_per_byte))
        rows.append([name, *numbers, times, f"{speed.memory:.0f}"])
    names = ("MB/s", "MB per CPU second", "million tokens/s", "times 1 process", "memory, MB")
    return table(["", *names], rows)


def _ours(text: Path, model: Path, folder: Path, workers: int, encoder: EncoderName) -> None:
    names = dict(inputs=[str(text)], output_prefix=f"{folder}/made", tokenizer=str(model))
    job = PreprocessJob(**names, workers=workers, encoder=encoder, log_interval=10**9)
    preprocess(job, report=lambda line: None)


def _spent(run: Callable[[], None]) -> Spent:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    largest = max(grown, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return Spent(time.perf_counter() - wall, _cpu_seconds() - cpu, largest * 1024 / 1e6)


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _gigatoken(text: Path, model: Path) -> None:
    gigatoken = require("gigatoken", "preprocess", "this benchmark")
    source = gigatoken.JsonlFileSource([text])
    # left to itself it takes one thread in a process that was forked
    gigatoken.Tokenizer.from_sentencepiece(model).encode_files(source, parallel=True)


def _tokenizers(text: Path, model: Path) -> None:
    library = require("tokenizers", "preprocess", "this benchmark")
    loader = require("gigatoken._load.sentencepiece", "preprocess", "this benchmark")
    description = loader.sentencepiece_to_tokenizer_json(model.read_bytes())
    tokenizer = library.Tokenizer.from_str(description)
    kept = []
    with text.open("rb") as lines:
        while batch := [json.loads(line)["text"] for line in islice(lines, 1000)]:
            kept += [np.array(each.ids) for each in tokenizer.encode_batch_fast(batch)]


def _megatron(checkout: Path, text: Path, model: Path, folder: Path) -> None:
    path = [str(checkout), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [
            *(sys.executable, str(checkout / "tools/preprocess_data.py"), "--input", str(text)),
            *("--output-prefix", f"{folder}/megatron", "--tokenizer-model", str(model)),
            *("--tokenizer-type", "GPTSentencePieceTokenizer", "--workers", "2"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        # Its own megatron.core, not an installed one.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


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
    parser.add_argument("--megatron", type=Path, metavar="FOLDER", help="Megatron-LM's checkout")
    parser.add_argument("--fast", action="store_true", help="gigatoken and ours alone")
    parser.add_argument("--rounds", type=int, default=5, help="of the fast contestants [5]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
