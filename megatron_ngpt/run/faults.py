"""``faults.jsonl``: steps that were refused, and what was done about them. Without torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.facts import add_line, json_lines

FILE = "faults.jsonl"

Action = Literal["stop", "skip", "rollback"]
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A step whose result went nowhere."""

    step: int
    """Its number; done later with other data, or never."""
    problem: str
    action: Action
    back_to: int = -1
    """Step of the checkpoint that a rollback went to."""
    left_out: Ranges = ()
    """Tokens of the training stream, first and one past the last, that no step gets from now on."""
    samples: tuple[int, int] = (0, 0)
    """Of its batch: number of the first, in sequences of data.seq_len, and one past the last."""
    ranks: tuple[int, ...] = ()
    """That have a loss or a gradient of their own which is not finite."""
    micro_batches: tuple[dict[str, Any], ...] = ()
    """Those with such a loss, else the ones with the highest: rank, samples, loss."""
    parameters: tuple[str, ...] = ()
    """With a gradient that is not finite, where ranks hold whole ones (no ZeRO)."""
    loss: float | None = None
    grad_norm: float | None = None
    attempt: int = 0
    """Number of the start in attempts.jsonl."""
    time: float = 0.0
    """Seconds since 1970."""


def read_faults(run_dir: Path) -> list[Fault]:
    """All of a run, oldest first."""
    found = []
    for facts in json_lines(run_dir / FILE):
        with suppress(ValueError, TypeError):  # somebody edited it
            facts["left_out"] = [(int(a), int(b)) for a, b in facts.get("left_out", ())]
            known = Fault.__annotations__  # a later version may have more
            facts = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
            found.append(Fault(**{k: v for k, v in facts.items() if k in known}))
    return found


def record(run_dir: Path, fault: Fault) -> None:
    """Add one, so that it survives a power failure: the next start has to leave out the same data.

    Raises:
        OSError: the disk is full.
    """
    add_line(run_dir / FILE, asdict(fault))


def number_of(value: float) -> float | None:
    """JSON has none but finite ones."""
    return value if math.isfinite(value) else None


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same numbers in as few ranges as there can be, ascending."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return tuple(found)


def left_out(progress: Progress, faults: Iterable[Fault]) -> Ranges:
    """Tokens that no step gets: of a checkpoint, and of faults that came after it."""
    return merged([*progress.left_out, *(given for fault in faults for given in fault.left_out)])


def goes_on_at(progress: Progress, faults: Iterable[Fault]) -> int:
    """First token that a run reads which stands at a checkpoint and has had these faults."""
    for first, end in left_out(progress, faults):
        if first <= progress.tokens < end:
            return end
    return progress.tokens


def recent(faults: Sequence[Fault], step: int, window: int) -> int:
    """How many there were in the ``window`` steps before ``step``, and at it."""
    return sum(fault.action != "stop" and fault.step > step - window for fault in faults)


class Spikes:
    """Finds losses that lie far above the last ones.

    Args:
        threshold: standard deviations above the median; 0 finds none and keeps nothing.
        window: how many losses to measure by.
        losses: the last ones so far.
    """

    def __init__(self, threshold: float, window: int, losses: Sequence[float] = ()) -> None:
        self.threshold = threshold
        self.losses = deque(losses if threshold else (), maxlen=window)

    def add(self, loss: float) -> None:
        """A step was done with this loss."""
        if self.threshold:
            self.losses.append(loss)

    def score(self, loss: float) -> float:
        """Robust z-score, (loss - median) / (1.4826 median |loss - median|); 0 until there are
        enough losses.

        Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993.
        """
        if not self.losses or len(self.losses) < (self.losses.maxlen or 0):
            return 0.0
        middle = median(self.losses)
        spread = 1.4826 * median(abs(other - middle) for other in self.losses)
        return (loss - middle) / max(spread, 1e-6 * abs(middle), 1e-30)

    def problem(self, loss: float) -> str:
        """What is wrong with a loss, or ""."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        score = self.score(loss) if self.threshold else 0.0
        if score <= self.threshold:
            return ""
        return (
            f"loss is {loss:.6g}, {score:.1f} deviations above the median "
            f"{median(self.losses):.6g} of the last {len(self.losses)} steps"
        )
