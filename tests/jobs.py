"""Small training jobs: a toy corpus, the command line for it, and the command as a user runs it."""

import gc
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

import pretrain_ngpt
from megatron_ngpt.config import parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.engine.checkpoint.state import engine_boxes
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh import launch
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.train.loop import train
from megatron_ngpt.train.watch import Watch
from tests.distributed import SLOW_IMPORTS

REPOSITORY = Path(__file__).resolve().parents[1]
VOCABULARY = 61

# no size divides by 2 or 3 more often than it must: ZeRO's partitions cut rows apart and are padded
TOY: dict[str, Any] = {
    "model.width": 30,
    "model.layers": 2,
    "model.heads": 3,
    "model.ffn_width": 37,
    "model.vocab_size": VOCABULARY,
    "optim.lr": 0.02,
    "data.seq_len": 16,
    "train.steps": 8,
    "train.global_batch": 12,
    "train.micro_batch": 2,
    "eval.every": 0,
    "eval.steps": 1,
    "engine.device": "cpu",
}


def write_corpus(folder: Path, documents: int = 60, vocabulary: int = VOCABULARY) -> str:
    """Prefix of a pair whose texts count upwards from a random id, so that losses fall soon."""
    random = np.random.default_rng(5)
    prefix = folder / "toy_text_document"
    with IndexedWriter(prefix, "uint16") as writer:
        for _ in range(documents):
            first, length = random.integers(vocabulary), random.integers(20, 60)
            writer.add_document((first + np.arange(length)) % vocabulary)
    return str(prefix)


def words(corpus: str, folder: Path, **sections: dict[str, Any]) -> list[str]:
    """Command line of a toy run that writes into ``folder``, e.g. ``train={"steps": 4}``."""
    options = TOY | {"data.train": corpus, "logging.dir": folder}
    for section, values in sections.items():
        options |= {f"{section}.{name}": value for name, value in values.items()}
    return [word for name, value in options.items() for word in (f"--{name}", _text(value))]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass
class Finished:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out[-3000:]}\n{self.err[-6000:]}"


def command(arguments: Sequence[str], processes: int = 0) -> list[str]:
    """pretrain_ngpt.py under torchrun, or by plain python when ``processes`` is 0."""
    launcher = [sys.executable]
    if processes:  # port 0: runs beside each other cannot take one another's
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    return [*launcher, "pretrain_ngpt.py", *arguments]


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """A command that is killed at the end, with all it started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    process = subprocess.Popen(list(argv), cwd=REPOSITORY, env=environment, **options)
    try:
        yield process
    finally:
        kill_family(process)


def kill_family(process: subprocess.Popen) -> None:
    """SIGKILL to a command and everything it started; torchrun gives its ranks own sessions."""
    if process.poll() is not None:
        return  # its number may be another process's by now
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        parent.suspend()  # starts nothing more
        for member in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


def finish(argv: Sequence[str], timeout: float = 120, **options: Any) -> Finished:
    """Run a command to its end.

    Raises:
        AssertionError: it took longer than ``timeout`` seconds; the message holds its output.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(argv, **pipes, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_family(process)
            out, err = process.communicate()
            raise AssertionError(f"still running after {timeout} s\n{out}\n{err}") from None
    return Finished(process.returncode, out, err)


def pretrain(arguments: Sequence[str], processes: int = 0, **options: Any) -> Finished:
    """Run pretrain_ngpt.py to its end."""
    return finish(command(arguments, processes), **options)


def forked(arguments: Sequence[str], largest_file: int = -1) -> Finished:
    """Like plain ``python pretrain_ngpt.py`` in all but the seconds of its imports.

    Args:
        arguments: its command line.
        largest_file: bytes beyond which the disk refuses to write a file; -1 for no such limit.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        job = (list(arguments), largest_file, str(out), str(err))
        process = context.Process(target=_pretrain_here, args=job)
        process.start()
        process.join(120)
        process.kill()
        process.join()
        return Finished(process.exitcode, out.read_text(), err.read_text())


def _pretrain_here(arguments: list[str], largest_file: int, out: str, err: str) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream.fileno())
    gc.freeze()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["pretrain_ngpt.py", *arguments]
    launch.finish(pretrain_ngpt.run())


def metrics(folder: Path) -> list[dict[str, float]]:
    """Every record of a run's metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def train_on(mesh: Mesh, arguments: Sequence[str], watch: Watch | None = None) -> Engine:
    """The same job on a rank of :func:`tests.distributed.run`; returns the engine it trained."""
    config = parse_config(arguments)
    stages, valid = open_corpora(config.data)
    engine = Engine(config, mesh)
    train(config, engine, stages, valid, watch)
    return engine


def whole_state(engine: Engine) -> dict[str, Tensor]:
    """Masters and Adam's averages, unsharded: ``master/NAME``, ``exp_avg/NAME`` ...; collective."""
    found = {}
    for name, boxes in engine_boxes(engine).items():
        found[name] = torch.zeros(boxes.shape)
        for offsets, values in boxes.parts.items():
            window = tuple(slice(o, o + s) for o, s in zip(offsets, values.shape, strict=True))
            found[name][window] = values
        if engine.config.optim.zero_stage:
            dist.all_reduce(found[name], group=engine.mesh.group("dp"))
    return found


def stored_state(checkpoint: Path) -> dict[str, Tensor]:
    """The same from a checkpoint's files, by its index alone."""
    found = {}
    for name, tensor in json.loads((checkpoint / "index.json").read_text())["tensors"].items():
        found[name] = torch.full(tensor["shape"], 0, dtype=getattr(torch, tensor["dtype"]))
        for box in tensor["boxes"]:
            edges = zip(box["offsets"], box["sizes"], strict=True)
            with safe_open(checkpoint / box["file"], "pt") as file:
                found[name][tuple(slice(o, o + s) for o, s in edges)] = file.get_tensor(box["key"])
    return found
