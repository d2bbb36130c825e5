"""Seconds before anything is trained: commands that need no torch, and a start by phase.

    python -m benchmarks.startup [--rounds 3] [--other CHECKOUT]

Every command and every start is a process of its own; medians by CPU time and by the clock. The
start trains one step of a small model on 3,000 random documents. Another checkout's commands take
turns with this one's.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from megatron_ngpt.data.indexed import IndexedWriter

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "pretrain --help": ["pretrain_ngpt.py", "--help"],
    "pretrain --print_config": ["pretrain_ngpt.py", "--print_config"],
    "pretrain, refused setting": ["pretrain_ngpt.py", "--model.heads", "7"],
    "pretrain, refused topology": ["pretrain_ngpt.py", "--parallel.tp", "2"],
    "estimate --help": ["tools/estimate.py", "--help"],
    "estimate of 1B on 64 GPUs": [
        *("tools/estimate.py", "--config", "examples/configs/ngpt_1b_4k.yaml", "--gpus", "64")
    ],
    "generate --help": ["tools/generate.py", "--help"],
    "evaluate --help": ["tools/evaluate.py", "--help"],
}

# run in a process of its own: marks the end of each phase on stderr
PHASES = """
import resource, sys, time

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

last = [float(sys.argv.pop(1)), 0.0]

def mark(phase):
    now = [time.time(), cpu()]
    print("phase", phase, now[0] - last[0], now[1] - last[1], sep="|", file=sys.stderr)
    last[:] = [time.time(), cpu()]

def around(owner, name, phase, before=None):
    call = getattr(owner, name)
    def marked(*args, **kwargs):
        if before:
            mark(before)
        done = call(*args, **kwargs)
        mark(phase)
        return done
    setattr(owner, name, marked)

import pretrain_ngpt
mark("settings: imports")
around(pretrain_ngpt, "_parse", "settings: read and checked")
around(pretrain_ngpt, "open_corpora", "data opened")
import torch
mark("import of torch")
import megatron_ngpt.engine.checkpoint.checkpointer
from megatron_ngpt.engine import direct, engine
from megatron_ngpt.train import loop
mark("imports of the engine and the loop")
around(pretrain_ngpt, "start", "process group")
around(direct, "start", "model and optimizer built", "mesh, newest checkpoint")
around(engine.Masters, "initialise", "initial weights")
around(engine.Engine, "train_step", "first step", "loader and log")
pretrain_ngpt.finish(pretrain_ngpt.run())
"""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="starts of each")
    parser.add_argument("--other", type=Path, help="checkout to compare with")
    options = parser.parse_args()
    roots = [ROOT, *([options.other.resolve()] if options.other else [])]
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{'command':34} {'CPU s':>6} {'clock s':>8}" + "   of the other" * bool(options.other)
        )
        run = [*_small(random_corpus(Path(folder))), "--logging.dir", f"{folder}/run"]
        told = {**COMMANDS, "one step, launch to exit": ["pretrain_ngpt.py", *run]}
        for name, words in told.items():
            _tell(name, [_turn(words, roots, folder) for _ in range(options.rounds)])
        starts = [dict(_phases(run, folder)) for _ in range(options.rounds)]
    print(f"\n{'phase of a start':34} {'CPU s':>6} {'clock s':>8}")
    for phase in starts[0]:
        clock, cpu = (median(start[phase][i] for start in starts) for i in (0, 1))
        print(f"{phase:34} {cpu:6.2f} {clock:8.2f}")
    clock, cpu = (median(sum(p[i] for p in start.values()) for start in starts) for i in (0, 1))
    print(f"{'launch to the first step':34} {cpu:6.2f} {clock:8.2f}")


def random_corpus(folder: Path) -> str:
    """PREFIX of 3,000 documents of 64 random ids below 257."""
    prefix, drawn = str(folder / "corpus"), np.random.default_rng(0)
    with IndexedWriter(prefix, np.uint16) as writer:
        for _ in range(3000):
            writer.add_document(drawn.integers(0, 257, 64))
    return prefix


def _small(corpus: str) -> list[str]:
    """One step of a small model."""
    settings = {
        **{"model.width": 64, "model.layers": 2, "model.heads": 4, "model.vocab_size": 257},
        **{"data.seq_len": 64, "data.train": corpus, "train.steps": 1, "train.global_batch": 4},
        **{"eval.every": 0},
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def _tell(name: str, rounds: list[list[tuple[float, float]]]) -> None:
    """Medians of this checkout, then of the other."""
    found = [
        [median(values) for values in zip(*turns, strict=True)]
        for turns in zip(*rounds, strict=True)
    ]
    print(f"{name:34} " + "   ".join(f"{cpu:6.2f} {clock:8.2f}" for cpu, clock in found))


def _turn(words: list[str], roots: list[Path], folder: str) -> list[tuple[float, float]]:
    """CPU and wall-clock seconds of one command, in each checkout."""
    return [_seconds(words, root, folder) for root in roots]


def _seconds(words: list[str], root: Path, folder: str) -> tuple[float, float]:
    shutil.rmtree(f"{folder}/run", ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, *words], cwd=root, capture_output=True, env=environment)
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, clock


def _phases(words: list[str], folder: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """Clock and CPU seconds of each phase of one start up to its first step."""
    shutil.rmtree(f"{folder}/run", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", PHASES, str(time.time()), *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    for line in done.stderr.splitlines():
        if line.startswith("phase|"):
            _, phase, clock, cpu = line.split("|")
            yield phase, (float(clock), float(cpu))


if __name__ == "__main__":
    main()
