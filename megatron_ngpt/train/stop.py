"""Ending early: a signal or the clock asks, all ranks agree at a step boundary."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
REASONS = ("", "walltime", "signal")  # what all-reduce takes the largest of


class Stop:
    """Whether this rank was asked to end; the answer counts when all ranks agree on it.

    Args:
        exit_after: seconds from now after which the clock asks.
    """

    def __init__(self, exit_after: float = math.inf) -> None:
        self.deadline = time.monotonic() + exit_after
        self.asked = False

    def __enter__(self) -> Stop:
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # nobody would answer; after a good end a late signal changes nothing
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    def listen(self) -> None:
        """From now on SIGUSR1 and SIGTERM only ask; as a context manager, until an error."""
        for number in SIGNALS:
            signal.signal(number, self._ask)
        # SLURM signals a step's every process. Those of torch.compile, started later, would die
        # of it; a blocked signal stays blocked in them, and here other threads still get it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True

    def _mine(self) -> int:
        if self.asked or not signal.sigpending().isdisjoint(SIGNALS):
            return REASONS.index("signal")
        return REASONS.index("walltime") if time.monotonic() >= self.deadline else 0

    def agreed(self, device: torch.device) -> str:
        """Why every rank ends now, "" if none was asked; collective, 4 bytes over all ranks."""
        import torch
        import torch.distributed as dist

        answer = torch.tensor(self._mine(), dtype=torch.int32, device=device)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return REASONS[int(answer)]
