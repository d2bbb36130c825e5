r"""How much of a job's time makes progress where nodes fail, and how often to save.

Failures come at random, lambda a second for the whole job. From one checkpoint to the next a run
computes for tau seconds and stands still for delta while it saves. A failure sends the job back to
the queue, where nothing can fail, for q seconds; a start takes r seconds and may fail, too. What
was computed since the last checkpoint is done again, and also the w seconds in which that was still
being written. With s = tau + delta, the mean time from one checkpoint to the next is

    T = (e^(lambda s) - 1) (1 / lambda + E + w),   E = q e^(lambda r) + (e^(lambda r) - 1) / lambda

and tau / T the share of time that makes progress, the goodput. With q = w = 0 this is Daly's model
(Future Generation Computer Systems 22, 2006, equation 20); the best tau for rare failures is
Young's, sqrt(2 delta / lambda) (CACM 17, 1974). The writing enters to first order in lambda w.
``simulate`` makes the same story of random numbers, in which nothing is approximated.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What interrupts a job, and what an interruption costs; all times in seconds."""

    nodes: int
    per_node_day: float
    """Interruptions of the whole job that a node causes in a day."""
    queue: float
    """From an interruption to the next start, SLURM's own waiting included."""
    start: float
    """From the start of a job to its first step."""
    stall: float
    """That training stands still for a save."""
    write: float
    """From there until the checkpoint is there to be resumed."""

    @property
    def rate(self) -> float:
        """Failures of the job a second."""
        return self.nodes * self.per_node_day / DAY


def progress(failures: Failures, interval: float) -> float:
    """Share of time that makes progress when ``interval`` seconds of steps lie between saves."""
    rate, spent = failures.rate, interval + failures.stall
    if not rate:
        return interval / spent
    if rate * (spent + failures.start) > 500:
        return 0.0  # it would overflow, and no such run ever gets there
    down = failures.queue * math.exp(rate * failures.start)
    down += math.expm1(rate * failures.start) / rate
    return interval / (math.expm1(rate * spent) * (1 / rate + down + failures.write))


def young(failures: Failures) -> float:
    """Young's interval, for comparison: seconds of steps between saves."""
    return math.sqrt(2 * failures.stall / failures.rate) if failures.rate else math.inf


def best_interval(failures: Failures, step: float) -> int:
    """Steps of ``step`` seconds between two saves that make most progress.

    Progress rises to its only peak and falls from there, so that a search by thirds finds it. A
    save is never begun while the one before is still written.
    """
    low = max(1, math.ceil((failures.write - failures.stall) / step))
    high = max(low, math.ceil(20 / failures.rate / step)) if failures.rate else 10**9
    while high - low > 2:
        third = (high - low) // 3
        left, right = low + third, high - third
        if progress(failures, left * step) < progress(failures, right * step):
            low = left + 1
        else:
            high = right - 1
    return max(range(low, high + 1), key=lambda steps: progress(failures, steps * step))


def simulate(failures: Failures, interval: float, node_days: float, seed: int) -> float:
    """The same share, of a job that lives for so many node-days: failure by failure.

    Args:
        failures: of the job.
        interval: seconds of steps between two saves.
        node_days: nodes times days to play through.
        seed: of the random numbers.
    """
    draw = random.Random(seed)
    end, now = node_days / failures.nodes * DAY, 0.0
    saved = 0.0  # seconds of steps that are safe
    begun = False
    while now < end:
        until = draw.expovariate(failures.rate) if failures.rate else math.inf
        until = min(until, end - now)
        up = until - failures.start if begun else until
        saved += _safe(failures, interval, up)
        now += until + failures.queue
        begun = True
    return saved / now


def _safe(failures: Failures, interval: float, up: float) -> float:
    """Seconds of steps that are safe after a start whose steps went on for ``up`` seconds."""
    if up <= 0:
        return 0.0
    # a checkpoint counts when it is written: its steps, its stall and then the writing
    whole = (up - failures.write) // (interval + failures.stall)
    return max(0.0, whole) * interval


def told(failures: Failures, step: float, every: int) -> str:
    """What a person reads: progress at today's checkpoint.every, at the best, and around it.

    Args:
        failures: of the job.
        step: seconds of a step.
        every: checkpoint.every of the run.
    """
    if not failures.rate:
        return "no failures: save as seldom as you like"
    best = best_interval(failures, step)
    between = 1 / failures.rate / 3600
    lines = [
        f"failures: one in {between:.3g} h of the job ({failures.nodes} nodes, "
        f"{failures.per_node_day:g} a node and day)",
        f"{'checkpoint.every':>16}  {'minutes':>8}  progress",
    ]
    for steps in sorted({every, best, max(1, best // 4), best * 4}):
        marks = [name for name, at in (("best", best), ("this run", every)) if at == steps]
        share = progress(failures, steps * step)
        lines.append(f"{steps:16,}  {steps * step / 60:8.1f}  {share:8.1%}  {', '.join(marks)}")
    lines.append(
        f"Each failure costs {failures.queue / 60:.3g} min of waiting, {failures.start:g} s to "
        f"start and the steps since the last checkpoint; a save {failures.stall:g} s. Young's "
        f"interval is {young(failures) / 60:.1f} min. Formula: docs/slurm.md."
    )
    return "\n".join(lines)
