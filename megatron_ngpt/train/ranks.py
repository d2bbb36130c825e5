"""Which rank the others wait for: each one's step, data and collective times, every few steps."""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from megatron_ngpt.console import say
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.waiting import Waiting

THRESHOLD = 0.1
"""Share of a step that the slowest rank has to cost to be named."""

MEASURED, ENOUGH = 5, 3
"""Steps that are kept to judge by, and how many it takes: one stall is nobody's habit."""


class Slowest(NamedTuple):
    """The rank that the others wait for."""

    rank: int
    cost: float
    """Share of the step that would be saved if it were like the others of its stage."""
    own: float
    """Seconds of a step in which it does not wait for others."""
    others: float
    """The same, median of the ranks of its pipeline stage."""


class Ranks:
    """Measures one step in so many on every rank; on CPUs, where waiting can be measured.

    Costs one all-gather of 12 bytes a rank in such a step.

    Args:
        engine: that trains.
        every: steps from one that is measured to the next; 0 for never.
    """

    def __init__(self, engine: Engine, every: int) -> None:
        self.engine, self.named = engine, -1
        alone = dist.get_world_size() == 1 or engine.mesh.device.type != "cpu"
        self.every = 0 if alone else every
        self.waiting: Waiting | None = None
        self.own: deque[list[float]] = deque(maxlen=MEASURED)
        self.steps: deque[float] = deque(maxlen=MEASURED)

    def around(self, step: int) -> AbstractContextManager:
        """Around what is to be measured of a step."""
        due = self.every and step % self.every == 0
        self.waiting = Waiting() if due else None
        return self.waiting or nullcontext()

    def taken(self, seconds: float, data: float) -> dict[str, Any]:
        """Figures for the vitals, where the step was measured; collective then.

        Args:
            seconds: that the step took here, data and all.
            data: of these, until the loader had the batch.
        """
        if self.waiting is None:
            return {}
        mine = torch.tensor([seconds, data, self.waiting.seconds])
        theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(theirs, mine)
        steps, datas, waits = ([round(v, 5) for v in column] for column in _columns(theirs))
        self.own.append([step - wait for step, wait in zip(steps, waits, strict=True)])
        self.steps.append(max(steps))
        told: dict[str, Any] = {"step": steps, "data": datas, "collective": waits}
        found = self._judged()
        if found:
            told["slowest"] = {name: round(value, 5) for name, value in found._asdict().items()}
        return {"rank_seconds": told}

    def _judged(self) -> Slowest | None:
        """The slowest rank, if it costs enough; told once. Collective when it is told."""
        if len(self.own) < ENOUGH:
            return None
        own = [median(values) for values in zip(*self.own, strict=True)]
        found = slowest(own, median(self.steps), self.engine.mesh.degrees.pp)
        if found is None or found.rank == self.named:
            return found
        self.named = found.rank
        hosts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(hosts, socket.gethostname())
        if self.engine.mesh.rank == 0:
            say(
                f"rank {found.rank} on {hosts[found.rank]} costs {found.cost:.0%} of each step: it "
                f"is busy for {found.own:.3g} s, others for {found.others:.3g} s",
                sys.stderr,
            )
        return found


def slowest(own: Sequence[float], step: float, stages: int = 1) -> Slowest | None:
    """Who costs the most, if that is more than :data:`THRESHOLD` of a step.

    Args:
        own: seconds in which each rank was busy itself.
        step: seconds of a step.
        stages: of the pipeline; ranks are laid out stage by stage, whose work differs.
    """
    size = len(own) // stages
    found = []
    for rank, mine in enumerate(own):
        first = rank // size * size
        if others := [*own[first:rank], *own[rank + 1 : first + size]]:
            usual = median(others)
            found.append(Slowest(rank, (mine - usual) / max(step, 1e-9), mine, usual))
    worst = max(found, key=lambda one: one.cost, default=None)
    return worst if worst and worst.cost > THRESHOLD else None


def _columns(rows: Sequence[torch.Tensor]) -> list[list[float]]:
    columns: list[list[float]] = torch.stack(list(rows)).T.tolist()
    return columns
