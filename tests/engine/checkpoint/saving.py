"""What tests of saving and resuming do on every rank: a small engine, steps, checkpoints."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.config import parse_config
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.run.checkpoints import Progress
from tests.jobs import VOCABULARY, whole_state, words

BATCH, T = 12, 16


def build(mesh, folder: Path, **sections: Any) -> tuple[Engine, Checkpointer]:
    """An engine and its checkpointer, with ``folder`` as the run's."""
    config = parse_config(words("no corpus is read", folder, **sections))
    engine = Engine(config, mesh)
    return engine, Checkpointer(config, engine)


def advance(engine: Engine, steps: Sequence[int]) -> None:
    """Take these steps, each on a batch of its own."""
    dp, rank = engine.mesh.degrees.dp, engine.mesh.index("dp")
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(VOCABULARY, (BATCH, T + 1), generator=generator)
        rows = batch.chunk(dp)[rank].unflatten(0, (-1, engine.config.train.micro_batch))
        engine.train_step(rows[..., :-1], rows[..., 1:], lr=0.01)


def at(step: int) -> Progress:
    """Progress after a step."""
    return Progress(step, step * BATCH * T)


def save_steps(engine: Engine, checkpointer: Checkpointer, steps: Sequence[int]) -> dict:
    """Take steps, save after each, wait; the whole state by step."""
    states = {}
    for step in steps:
        advance(engine, [step])
        states[step] = whole_state(engine)
        checkpointer.save(at(step))
    checkpointer.wait()
    return states


def resume_told(checkpointer: Checkpointer) -> tuple[Progress, str]:
    """What resuming finds, and what it prints on stderr."""
    told = io.StringIO()
    with redirect_stderr(told):
        progress = checkpointer.resume()
    return progress, told.getvalue()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether every tensor of ``one`` is the same bits in ``other``."""
    return all(torch.equal(values, other[name]) for name, values in one.items())


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden names included."""
    return sorted(path.name for path in folder.iterdir())
