"""Measuring side by side: interleaved rounds, medians with their spread, peak memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, the device's part included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


@runtime_checkable
class Elsewhere(Protocol):
    """Work done by another process, which measures it there."""

    def lap(self) -> tuple[float, float]:
        """Do it once: seconds by the clock, and CPU seconds of that process."""


@dataclass
class Laps:
    """Seconds of one contestant, round by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process; other work on the machine hardly changes them."""

    def add(self, work: Callable[[], object], device: torch.device) -> None:
        """Do the work once more and note how long it took."""
        if isinstance(work, Elsewhere):
            wall, cpu = work.lap()
            self.wall.append(wall)
            self.cpu.append(cpu)
            return
        before = time.process_time()
        self.wall.append(timed(work, device))
        self.cpu.append(time.process_time() - before)

    def after(self, warm_up: int) -> Laps:
        """Without the first rounds."""
        return Laps(self.wall[warm_up:], self.cpu[warm_up:])


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, Laps]:
    """Times of each contestant, run in the order A B C A B C, so that drift hits all."""
    laps = {name: Laps() for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            laps[name].add(work, device)
    return laps


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "q25": values[0], "q75": values[0]}
    q25, median, q75 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q25": q25, "q75": q75}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the quotient taken round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def with_peak_memory(work: Callable[[], T], device: torch.device) -> tuple[T, int]:
    """What ``work`` returns, and the most bytes of tensors it had allocated at once.

    Asked of torch's allocators, so the two kinds of device mean the same. Tensors that lived before
    do not count. On CPU memory that was reserved but never written counts too.
    """
    if device.type != "cuda":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            made = work()
        return made, _peak_of(trace)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    made = work()
    return made, torch.cuda.max_memory_allocated(device) - before


def _peak_of(trace: profile) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda moment: moment[0]):
        now += change
        peak = max(peak, now)
    return peak
