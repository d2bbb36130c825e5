"""Tokens/s of the loader, time to a first batch, open files: one corpus and blends of many.

    python -m benchmarks.data_loading

All corpora are random uint16 ids, written to a temporary folder first and so in the page cache.
"first batch" is from opening the pairs, through all checks of agreement.py, to the first batch of
32 samples of 1,024 tokens, read in the caller's thread; "first time" is without manifest, when the
tokens are read for the largest id. Speeds are medians of rounds; a CPU second counts all threads,
and suffers less from a busy machine. Descriptors are those the blend adds to the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.report import facts, table, write_json
from megatron_ngpt.config import Config, CorpusConfig, DataConfig, TrainConfig
from megatron_ngpt.data.agreement import check_corpora
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.loader import Loader, train_loader


class Case(NamedTuple):
    """What is loaded."""

    name: str
    prefixes: list[str]
    seq_len: int
    global_batch: int
    prefetch: int = 0
    documents: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=10**8, help="tokens of the large corpus")
    parser.add_argument("--documents", type=int, default=10**7, help="documents of the long one")
    parser.add_argument("--corpora", type=int, default=1000, help="corpora of the blend")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        large = [_write(Path(folder), "large", options.tokens, 1000)]
        long = [_write(Path(folder), "long", 10 * options.documents, 10)]
        many = [_write(Path(folder), f"{i}", 100_000, 1000) for i in range(options.corpora)]
        cases = [
            Case("1 corpus", large, 1024, 32),
            Case("1 corpus, prefetch 2", large, 1024, 32, prefetch=2),
            Case("1 corpus", large, 4096, 32),
            Case("1 corpus, document_mask", large, 1024, 32, documents=True),
            Case("1 corpus, document_mask", large, 4096, 32, documents=True),
            Case("2 corpora", [*large, *long], 1024, 32),
            Case(f"{options.corpora} corpora", many, 1024, 512),
            Case(f"{options.corpora} corpora", many, 4096, 512),
        ]
        speeds = [[case.name, case.seq_len, *_speed(case, options.rounds)] for case in cases]
        starts = []
        for name, corpora in (
            (f"{options.documents:,} documents", long),
            (f"{options.corpora} corpora", many),
        ):
            case = Case("", corpora, 1024, 32, documents=True)
            starts += [[f"{name}, first time", *_start(case)], [name, *_start(case)]]
    results = facts(torch.device("cpu"))
    print(json.dumps(results))
    header = ["", "seq_len", "million tokens/s", "million tokens per CPU second"]
    print(table(header, [[str(cell) for cell in row] for row in speeds]))
    header = ["", "seconds to the first batch", "descriptors"]
    print(table(header, [[str(cell) for cell in row] for row in starts]))
    write_json(options.json, results | {"speeds": speeds, "starts": starts})
    return 0


def _write(folder: Path, name: str, tokens: int, length: int) -> str:
    random = np.random.default_rng(zlib.crc32(name.encode()))  # equal ones would be refused
    with IndexedWriter(folder / name, "uint16") as writer:
        for size in [min(10**7, tokens)] * max(1, tokens // 10**7):
            ids = random.integers(0, 32000, size, np.uint16)
            writer.add_documents(ids, np.full(size // length, length))
    return str(folder / name)


def _loader(case: Case) -> Loader:
    # Weights of which no two are equal, and the same at every start.
    corpora = tuple(
        CorpusConfig(prefix=prefix, weight=1 + i) for i, prefix in enumerate(case.prefixes)
    )
    data = DataConfig(
        train=corpora,
        seq_len=case.seq_len,
        prefetch=case.prefetch,
        document_mask=case.documents,
    )
    batch = TrainConfig(global_batch=case.global_batch, micro_batch=1)
    config = Config(data=data, train=batch)
    stages, valid = open_corpora(data)
    config, _ = check_corpora(config, stages, valid)
    return train_loader(config, stages, dp=1, dp_rank=0, consumed=0)


def _speed(case: Case, rounds: int) -> tuple[int, int]:
    batches = max(1, 2 * 10**7 // (case.global_batch * case.seq_len))
    wall, cpu = [], []
    with _loader(case) as loader:
        for _ in range(rounds + 1):  # the first round warms up
            started = time.perf_counter(), time.process_time()
            tokens = sum(next(loader)[0].tokens.numel() for _ in range(batches))
            wall.append(tokens / (time.perf_counter() - started[0]))
            cpu.append(tokens / (time.process_time() - started[1]))
    return tuple(round(statistics.median(found[1:]) / 1e6) for found in (wall, cpu))


def _start(case: Case) -> tuple[float, int]:
    descriptors = len(os.listdir("/proc/self/fd"))
    started = time.perf_counter()
    with _loader(case) as loader:
        next(loader)
        seconds = time.perf_counter() - started
        return round(seconds, 3), len(os.listdir("/proc/self/fd")) - descriptors


if __name__ == "__main__":
    raise SystemExit(main())
