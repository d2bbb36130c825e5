"""Whether a job that ended shall start again, from what its attempts left. Without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from megatron_ngpt.decision import Decision
from megatron_ngpt.run.attempts import Attempt, add, begin, close_dead, read_attempts
from megatron_ngpt.run.claim import read
from megatron_ngpt.run.owner import living

ASKED = ("signal", "walltime")
"""Reasons for which a run ends saved, to go on later."""


def decide(run_dir: Path, job: str, restarts: int, exit_code: int, tries: int) -> Decision:
    """Close the attempt that just ended and decide.

    Args:
        run_dir: the run's folder.
        job: number of the job, the same over its restarts.
        restarts: how often it was requeued so far.
        exit_code: of the launcher, for an attempt that left nothing behind.
        tries: attempts in a row without a new checkpoint after which to give up.
    """
    held = read(run_dir)
    ours = bool(job and held and held.claim and held.claim.job == job)  # it has just ended
    if not ours and (owner := living(run_dir)):
        return Decision("give up", f"{run_dir} belongs to a run that goes on: {owner}")
    close_dead(run_dir)
    mine = [a for a in read_attempts(run_dir) if a.job == job]
    if not any(a.restarts == restarts for a in mine):
        _never_started(run_dir, job, restarts, exit_code)
        mine = [a for a in read_attempts(run_dir) if a.job == job]
    last = mine[-1]
    how = f"attempt {last.number} ended by {last.reason} after step {max(last.step, 0)}"
    how += f" ({last.detail})" * bool(last.detail)
    if last.reason == "done":
        return Decision("done", f"done after step {last.step}")
    if last.reason == "refused":
        return Decision("give up", f"refused, which to start again does not change: {last.detail}")
    if (failed := without_progress(read_attempts(run_dir), job)) >= tries:
        return Decision(
            "give up", f"{failed} attempts in a row without a new checkpoint, the last: {how}"
        )
    return Decision("requeue", f"{how}; goes on from step {last.saved}")


def _never_started(run_dir: Path, job: str, restarts: int, exit_code: int) -> None:
    before = read_attempts(run_dir)
    number = begin(run_dir, job=job, restarts=restarts)
    add(
        run_dir,
        number,
        ended=time.time(),
        saved=before[-1].saved if before else 0,
        reason="never started",
        detail=f"the launcher ended with exit code {exit_code}, see the job's output",
    )


def without_progress(everyone: Sequence[Attempt], job: str) -> int:
    """How many of a job's last attempts saved nothing newer than what was there before them."""
    mine = [attempt for attempt in everyone if attempt.job == job]
    before = {a.number: b.saved for b, a in pairwise(everyone)}
    count = 0
    for attempt in reversed(mine):
        if attempt.saved > before.get(attempt.number, 0):
            break
        count += 1
    return count
