"""Save on one topology, resume on another, and look at what was read and what came back."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.config import CheckpointConfig, Config
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.checkpoint.planner import BoxLoadPlanner
from megatron_ngpt.engine.checkpoint.state import engine_boxes
from megatron_ngpt.engine.checkpoint.storage import Reader
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.run.checkpoints import Progress
from tests.jobs import stored_state
from tests.parallel.training import PROMPT, Case, build, config_of, share, some_tokens

SAVED, STEPS = 3, 6
CHECKPOINT = f"step_{SAVED:08d}"
KINDS_OF_STATE = ("master", "exp_avg", "exp_avg_sq")


@dataclass
class Written:
    """What one rank tells of a run that saved on its way."""

    losses: list[float] = field(default_factory=list)
    """Of the steps after the save."""
    differing: list[str] = field(default_factory=list)
    """Tensors that the files do not hold bit by bit."""
    logits: Tensor | None = None
    """At the time of the save, where this rank has any."""


@dataclass
class Resumed:
    """What one rank tells of a run that another topology began."""

    progress: Progress
    losses: list[float] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """Tensors that are not bit by bit those of the files."""
    read: int = 0
    """Bytes of parameters and averages that this rank read."""
    held: int = 0
    """Bytes of them that it holds."""
    total: int = 0
    """Bytes of them that the files hold."""


def configured(case: Case, folder: Path) -> Config:
    """A case's configuration, its checkpoints in ``folder``."""
    place = CheckpointConfig(dir=str(folder), keep=0)
    return replace(config_of(case), checkpoint=place)


def write(mesh: Mesh, cases: list[Case], folder: Path) -> dict[Case, Written]:
    """Train on each topology, saving on the way into a folder named like the case."""
    return {case: _write(mesh, case, folder / str(case)) for case in cases}


def _write(mesh: Mesh, case: Case, folder: Path) -> Written:
    config = configured(case, folder)
    engine, found = build(mesh, config), Written()
    checkpointer = Checkpointer(config, engine)
    _advance(engine, range(SAVED))
    checkpointer.save(Progress(SAVED, SAVED * 24 * 16))
    state = whole_state(engine)
    found.logits = engine.logits(_tokens(engine)[0, :2, :PROMPT])
    found.losses = _advance(engine, range(SAVED, STEPS))
    checkpointer.close()
    found.differing = _differing(stored_state(folder / CHECKPOINT), state)
    engine.deepspeed.destroy()
    return found


def resume(mesh: Mesh, pairs: list[tuple[Case, Case]], folder: Path) -> dict[tuple, Resumed]:
    """Go on where each (source, target) pair's source saved, on its target's topology."""
    return {pair: _resume(mesh, *pair, folder) for pair in pairs}


def _resume(mesh: Mesh, source: Case, target: Case, folder: Path) -> Resumed:
    config = configured(target, folder / str(source))
    engine = build(mesh, config)
    torch.manual_seed(mesh.rank)
    with counted_reads() as read:
        found = Resumed(Checkpointer(config, engine).resume())
    stored = stored_state(Path(config.checkpoint_dir) / CHECKPOINT)
    found.differing = _differing(stored, whole_state(engine))
    found.read = sum(read.values())
    found.held = _bytes(v for b in engine_boxes(engine).values() for v in b.parts.values())
    found.total = _bytes(v for n, v in stored.items() if n.startswith(KINDS_OF_STATE))
    found.losses = _advance(engine, range(SAVED, STEPS))
    engine.deepspeed.destroy()
    return found


def _advance(engine: Engine, steps: range) -> list[float]:
    tokens = _tokens(engine)
    return [engine.train_step(*share(engine, tokens[n]), lr=0.01).loss for n in steps]


def _tokens(engine: Engine) -> Tensor:
    return some_tokens(STEPS) % engine.config.model.vocab_size


def _bytes(tensors) -> int:
    return sum(values.numel() * values.itemsize for values in tensors)


@contextmanager
def counted_reads() -> Iterator[dict[str, int]]:
    """Bytes read of each tensor, random states left out."""
    read: dict[str, int] = {}
    copy = Reader._copy

    def counted(self, stored, item, planner):
        name = item.dest_index.fqn
        if name.startswith(KINDS_OF_STATE):
            read[name] = read.get(name, 0) + 4 * math.prod(item.lengths)
        copy(self, stored, item, planner)

    with patch.object(Reader, "_copy", counted):
        yield read


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Bytes of memory of its own that this process has more than at the first read, at each read.

    Looked at while the values that were read are still there.
    """
    growth: list[int] = []
    first: list[int] = []
    find = BoxLoadPlanner.resolve_tensor

    def watched(self, item):
        first.append(_own_memory())
        growth.append(first[-1] - first[0])
        return find(self, item)

    with patch.object(BoxLoadPlanner, "resolve_tensor", watched):
        yield growth


def _own_memory() -> int:
    """Resident bytes that are no file's pages."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def whole_state(engine: Engine) -> dict[str, Tensor]:
    """Masters and averages as whole tensors, put together from the boxes of all ranks; collective.

    Raises:
        AssertionError: boxes do not cover a tensor, or those of several ranks differ.
    """
    mine = engine_boxes(engine)
    found = {}
    for name in sorted(f"{kind}/{name}" for kind in KINDS_OF_STATE for name in engine.table):
        shape = engine.table[name.partition("/")[2]].shape
        low, high = torch.full(shape, math.inf), torch.full(shape, -math.inf)
        for offsets, values in mine[name].parts.items() if name in mine else ():
            window = tuple(slice(o, o + s) for o, s in zip(offsets, values.shape, strict=True))
            low[window], high[window] = values, values
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        assert torch.equal(low, high), name
        found[name] = low
    return found


def _differing(stored: dict[str, Tensor], held: dict[str, Tensor]) -> list[str]:
    names = {name for name in stored if name.startswith(KINDS_OF_STATE)}
    assert names == set(held)
    return [name for name in sorted(names) if not torch.equal(stored[name], held[name])]
