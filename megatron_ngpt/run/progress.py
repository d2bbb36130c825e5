"""How far a run is, for people: a bar on a terminal, else lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from megatron_ngpt.config import Config
from megatron_ngpt.console import say

Record = dict[str, float]


def shown(
    config: Config, resumed_at: int, ends_at: float, work: Callable[[int], float]
) -> tuple[Callable[[Record], None], Callable[[], None]]:
    """What to call with each step's record, and at the end.

    Args:
        config: the run's.
        resumed_at: steps done before.
        ends_at: when a time limit ends the run, in seconds since 1970.
        work: steps done -> how much of the run that is.
    """
    steps = config.train.steps
    if 0 < resumed_at <= steps:
        say(f"resumed at step {resumed_at} of {steps}")
    if sys.stderr.isatty():
        bar = tqdm(total=steps, initial=resumed_at, unit="step", dynamic_ncols=True)
        return steady("progress bar", _Bar(bar)), bar.close
    return _Lines(resumed_at, steps, config.logging.every, ends_at, work), lambda: None


class _Bar:
    """tqdm bar with loss and speed; evaluations stay above it."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, record: Record) -> None:
        if "valid_loss" in record:
            self.bar.write(_line(record, self.bar.total))
        self.bar.set_postfix_str(
            f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s", refresh=False
        )
        self.bar.update(1)


class _Lines:
    """One line every few steps, and for every evaluation."""

    def __init__(
        self, first: int, steps: int, every: int, ends_at: float, work: Callable[[int], float]
    ) -> None:
        self.first, self.steps, self.every, self.ends_at = first, steps, every, ends_at
        self.started, self.work = time.monotonic(), work

    def __call__(self, record: Record) -> None:
        step = int(record["step"])
        if step % self.every == 0 or step == self.steps or "valid_loss" in record:
            before, now, end = (self.work(n) for n in (self.first, step, self.steps))
            left = (time.monotonic() - self.started) * (end - now) / max(1, now - before)
            words = [_line(record, self.steps), f"{_clock(left)} left"]
            if self.ends_at < math.inf:
                words.append(f"time limit in {_clock(max(0.0, self.ends_at - time.time()))}")
            say(f"{time.strftime('%F %T')}  {', '.join(words)}")


def _line(record: Record, steps: int) -> str:
    words = [f"step {int(record['step'])}/{steps}", f"loss {record['loss']:.4f}"]
    if "valid_loss" in record:
        words.append(f"valid_loss {record['valid_loss']:.4f}")
    words += [f"lr {record['lr']:.2e}", f"{record['tokens_per_second']:,.0f} tokens/s"]
    return ", ".join(words)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def steady(name: str, write: Callable[[Any], object]) -> Callable[[Any], None]:
    """The same, but a failure of disk or terminal is told once and does not end the run."""
    told: list[OSError] = []

    def one(value: Any) -> None:
        try:
            write(value)
        except OSError as err:
            if not told:
                say(f"{name}: {err}; the run goes on", sys.stderr)
            told.append(err)

    return one
