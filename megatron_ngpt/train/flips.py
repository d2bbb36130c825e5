"""What a run does about flipped bits in its weights: it ends before they are saved, with names."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.run.failed import BitsFlipped
from megatron_ngpt.run.faults import Fault, number_of
from megatron_ngpt.train.watch import Watch

NAMED = 8
"""Most vectors that one rank names."""


class Flips:
    """Brings together what each rank has found in its own memory (engine/checksums.py).

    Args:
        engine: whose weights they are.
        watch: knows which step and which attempt it is.
        account: writes a fault down.
    """

    def __init__(self, engine: Engine, watch: Watch, account: Callable[[Fault], None]) -> None:
        self.engine, self.watch, self.account = engine, watch, account

    @property
    def found(self) -> bool:
        """Whether this rank has found any."""
        return bool(self.engine.masters.flipped)

    def look(self, loss: float = math.nan, grad_norm: float = math.nan) -> None:
        """Look whether the weights are as the last step has left them; collective.

        Raises:
            BitsFlipped: on every rank, when they are not on any.
        """
        self.engine.masters.look_for_flips()
        if anywhere(self.engine, self.found)[0]:
            raise self.told(loss, grad_norm)

    def told(self, loss: float, grad_norm: float) -> BitsFlipped:
        """The error that ends the run, written down; collective."""
        theirs: list[Any] = [None] * dist.get_world_size()
        mine, step = self.engine.masters.flipped, self.watch.step
        dist.all_gather_object(theirs, (socket.gethostname(), mine[:NAMED], len(mine)))
        guilty = {rank: found for rank, found in enumerate(theirs) if found[2]}
        each = [
            f"rank {rank} on {host}: {'; '.join(names)}{' and more' * (count > NAMED)}"
            for rank, (host, names, count) in guilty.items()
        ]
        problem = f"bits of weights have flipped since step {max(0, step - 1)}: {', '.join(each)}"
        fault = Fault(
            step=step + 1,
            problem=problem,
            action="stop",
            ranks=tuple(guilty),
            parameters=tuple(sorted({n.split(",")[0] for _, names, _ in theirs for n in names})),
            loss=number_of(loss),
            grad_norm=number_of(grad_norm),
            attempt=self.watch.attempt.number if self.watch.attempt else 0,
            time=time.time(),
        )
        self.account(fault)
        return BitsFlipped(
            f"{problem}. None of it was saved: start again, the run resumes from its newest "
            "checkpoint. Memory that does this twice is broken"
        )


def anywhere(engine: Engine, *here: bool) -> list[bool]:
    """What is so on any rank; collective."""
    worst = torch.tensor([float(one) for one in here], device=engine.mesh.device)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return [bool(one) for one in worst.tolist()]
