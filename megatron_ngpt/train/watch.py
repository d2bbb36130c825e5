"""What surrounds the steps of a run: when to end early, whether it stands still, what to record."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from megatron_ngpt.console import say
from megatron_ngpt.run.attempts import AttemptRecord
from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.faults import Fault
from megatron_ngpt.run.ledger import Entry, record
from megatron_ngpt.run.owner import Owner
from megatron_ngpt.train.stop import Stop
from megatron_ngpt.train.watchdog import Watchdog

if TYPE_CHECKING:
    import torch


class Interrupted(Exception):
    """All ranks agreed to end in the middle of an evaluation."""


@dataclass
class Watch:
    """The loop tells it of every boundary between steps, evaluation batches and saves."""

    stop: Stop = field(default_factory=Stop)
    watchdog: Watchdog | None = None
    attempt: AttemptRecord | None = None
    owner: Owner | None = None
    ends_at: float = math.inf
    """When the time limit ends the run, in seconds since 1970."""
    step: int = 0
    """Steps done."""
    reason: str = ""
    """Why all ranks agreed to end; "" while they did not."""
    warm: bool = False
    """Whether a step was done, so that none has to compile any more."""

    entry: Entry | None = None
    """Of the ledger, still to be written; on rank 0."""

    saves: list[float] = field(default_factory=list)
    """How long each took, in seconds; on rank 0."""

    faults: list[Fault] | None = None
    """Of the run so far; None until they were read."""

    def resumed(self, step: int) -> None:
        """The run begins to train after this step, or goes on after a phase or a rollback."""
        if not self.warm:
            self._note(resumed_at=step)
        if self.entry and self.attempt:
            self.guard()
            try:
                record(self.attempt.run_dir, replace(self.entry, step=step))
            except OSError as err:
                say(f"ledger.jsonl: {err}; the run goes on", sys.stderr)
            self.entry = None

    def past_the_end(self, step: int, goal: int) -> None:
        """Nothing is left to do, since the run once had more steps."""
        if self.attempt and self.attempt.rank == 0:
            say(
                f"nothing to do: the run stands at step {step}, beyond train.steps (or stop_at) = "
                f"{goal}; raise it to go on, or name an older checkpoint in checkpoints/latest to "
                "go back"
            )

    def guard(self) -> None:
        """Raise OwnerLost when the run's folders are no longer this run's."""
        if self.owner:
            self.owner.check()

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint counts from now on, begun so long ago; from the thread that writes it."""
        self.saves.append(round(seconds, 3))
        times = {"save_seconds": sum(self.saves), "longest_save": max(self.saves)}
        self._note(saved=step, saves=len(self.saves), **times)

    def ends(self, step: int, doing: str, device: torch.device) -> bool:
        """Whether all ranks end here, before ``doing`` what is next; collective."""
        self.beat(step, doing)
        self.reason = self.reason or self.stop.agreed(device)
        return bool(self.reason)

    def beat(self, step: int, doing: str) -> None:
        """There was progress, and ``doing`` comes next."""
        self.step = step
        if self.watchdog:
            self.watchdog.beat(step, doing, slow=not self.warm)

    def stepped(self) -> None:
        """A step was done."""
        if not self.warm:
            self.warm = True
            self._note(first_step=time.time())

    def ended(self, progress: Progress, last: int) -> None:
        """The run ends by itself, everything saved."""
        done = progress.step >= last and not progress.record
        reason = "done" if done else self.reason
        self._note(ended=time.time(), step=progress.step, saved=progress.step, reason=reason)

    def _note(self, **facts: float | str) -> None:
        if self.attempt:
            self.attempt.note(**facts)
