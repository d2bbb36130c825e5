"""A profile of a configuration's training step: the measuring behind ``tools/profile_step.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_ngpt.config import Config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.loader import train_loader
from megatron_ngpt.engine.engine import DTYPES, Engine
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.profiling.limit import Attention, Products
from megatron_ngpt.profiling.ranges import DATA, named
from megatron_ngpt.profiling.rooms import by_room
from megatron_ngpt.profiling.traffic import least_bytes

Work = Callable[[], object]
WARM_UP = 3
COPIED = 1 << 28
"""Bytes of the tensor whose copy says how fast memory is; no cache holds it."""


@dataclass(frozen=True)
class Measured:
    """Seconds are medians: CPU time of the process on CPUs, by the clock on GPUs."""

    step: float
    """Of a step, without the profiler."""
    threads: int
    """Whose CPU time it is; 1 on GPUs."""
    clock: float
    """The same by the clock."""
    products: float
    """Of the step's matrix products, bare."""
    attention: float
    """Of its attention, bare."""
    flops: float
    """Operations of the products."""
    copy: float
    """Of a copy of ``COPIED`` bytes, out of cache."""
    rooms: dict[str, float]
    """Share of the profiled time of each room."""
    bytes: dict[str, float]
    """The least that a room moves in a step."""

    def rate(self, work: float, seconds: float) -> float:
        """Work of all threads in a second."""
        return work * self.threads / seconds

    @property
    def limit_share(self) -> float:
        """Time of products and attention over time of the step."""
        return (self.products + self.attention) / self.step


def measure(config: Config, mesh: Mesh, steps: int, trace: Path | None) -> Measured:
    """Train a few steps with the real engine: bare ones in turns with the limit, then profiled."""
    device, dtype = mesh.device, DTYPES[config.train.dtype]
    share = config.train.global_batch // mesh.degrees.dp
    tokens = share * config.data.seq_len
    engine = Engine(config, mesh)
    products = Products(config.model, tokens, dtype, device)
    attention = Attention(config.model, share, config.data.seq_len, dtype, device)
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    with _batches(config, mesh) as batches:
        lr = learning_rate(config, config.optim.warmup_steps)

        def step() -> None:
            with record_function(DATA):
                tokens, targets = next(batches)
            engine.train_step(tokens, targets, lr)

        works: dict[str, Work] = {"step": step, "products": products, "attention": attention}
        works["copy"] = lambda: target.copy_(source)
        times = _in_turns(works, steps, device)
        rooms = _profiled(step, steps, device, trace)
    engine.close()
    clock = statistics.median(wall for wall, _ in times["step"])
    of = {n: statistics.median(pair[device.type == "cpu"] for pair in t) for n, t in times.items()}
    return Measured(
        of["step"],
        torch.get_num_threads() if device.type == "cpu" else 1,
        clock,
        of["products"],
        of["attention"],
        products.operations,
        of["copy"],
        rooms,
        least_bytes(config, tokens),
    )


@contextmanager
def _batches(config: Config, mesh: Mesh) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """The run's own batches from its start, or random ids for a configuration without data."""
    if not config.data.train:
        yield _random(config, mesh)
        return
    stages, _ = open_corpora(config.data)
    dp, device = mesh.degrees.dp, mesh.device
    with train_loader(config, stages, dp=dp, dp_rank=mesh.index("dp"), consumed=0) as loader:
        yield ((batch.tokens.to(device), batch.targets.to(device)) for batch, _ in loader)


def _random(config: Config, mesh: Mesh) -> Iterator[tuple[Tensor, Tensor]]:
    train = config.train
    accumulation = train.global_batch // train.micro_batch // mesh.degrees.dp
    size = (accumulation, train.micro_batch, config.data.seq_len)
    while True:
        ids = torch.randint(config.model.vocab_size, size, device=mesh.device)
        yield ids, ids.roll(-1, dims=-1)


def _in_turns(
    works: dict[str, Work], rounds: int, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of CPU time, work by work, after some rounds to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(WARM_UP + rounds):
        for name, work in works.items():
            _wait(device)
            clock, cpu = time.perf_counter(), time.process_time()
            work()
            _wait(device)
            if number >= WARM_UP:
                found[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _profiled(step: Work, steps: int, device: torch.device, trace: Path | None) -> dict[str, float]:
    """Shares of the rooms; the trace goes into a file if asked."""
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with named(), profile(activities=[ProfilerActivity.CPU, *gpu]) as profiled:
        for _ in range(steps):
            step()
        _wait(device)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(trace))
    found = by_room(profiled.events(), bool(gpu))
    whole = sum(found.values())
    return {room: time / whole for room, time in found.items()}
