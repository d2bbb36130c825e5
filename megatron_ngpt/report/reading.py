"""What a run's folder holds, as columns of numbers: 20,000 steps are 1 MB."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ngpt.run.attempts import Attempt, closed, read_attempts
from megatron_ngpt.run.checkpoints import checkpoints, step_of
from megatron_ngpt.run.claim import Claim, read
from megatron_ngpt.run.faults import Fault, read_faults
from megatron_ngpt.run.ledger import Entry, read_ledger
from megatron_ngpt.run.metrics import METRICS, VITALS
from megatron_ngpt.run.owner import verdict
from megatron_ngpt.run.sinks import flat

Column = NDArray[np.float64]
COLUMNS = (
    *("step", "tokens", "loss", "valid_loss", "grad_norm", "lr"),
    *("tokens_per_second", "step_seconds", "unit_error"),
)


@dataclass
class Vital:
    """One figure of the model over the steps at which it was taken."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("f"))


@dataclass
class RunData:
    """A run, read once."""

    path: Path
    name: str
    columns: dict[str, Column]
    """By name of COLUMNS, one value a step; nan where a record has none."""
    hours: Column
    """Since the first start, by the clock, of every step."""
    vitals: dict[str, Vital]
    """By flat name, as ``scales/s_qk/mean/layer_03``."""
    attempts: list[Attempt]
    ledger: list[Entry]
    saved: list[tuple[int, float, int]]
    """Step, seconds since 1970 and bytes of every checkpoint."""
    faults: list[Fault]
    lives: str
    """alive, free (nobody owns it) or silent (owned from where this machine cannot see)."""
    newest: float
    """When its metrics were last written, seconds since 1970."""

    @property
    def steps(self) -> int:
        """Steps that count."""
        return len(self.columns["step"])

    @property
    def goal(self) -> int:
        """Of train.steps; 0 where it is not known."""
        return int(self.ledger[-1].settings.get("train.steps", 0)) if self.ledger else 0

    def at(self, axis: str) -> Column:
        """Of every step: ``step``, ``tokens`` or ``hours``."""
        return self.hours if axis == "hours" else self.columns[axis]

    def place(self, step: float, axis: str) -> float:
        """Where a step lies on an axis."""
        if axis == "step" or not self.steps:
            return step
        return float(np.interp(step, self.columns["step"], self.at(axis), left=0.0))


def read_run(path: Path, name: str = "") -> RunData:
    """Read a run's folder.

    Raises:
        FileNotFoundError: no run has started there.
    """
    attempts = read_attempts(path)
    if not attempts and not (path / METRICS).exists():
        raise FileNotFoundError(f"{path}: no run has started there (no {METRICS})")
    if attempts and not attempts[-1].reason:
        attempts[-1] = _open_end(path, attempts[-1])
    columns = read_columns(path / METRICS)
    held = read(path)
    newest = (path / METRICS).stat().st_mtime if (path / METRICS).exists() else 0.0
    return RunData(
        path=path,
        name=name or path.resolve().name,
        columns=columns,
        hours=_hours(columns, attempts, newest),
        vitals=read_vitals(path / VITALS),
        attempts=attempts,
        ledger=read_ledger(path),
        saved=list(_saved(path, attempts)),
        faults=read_faults(path),
        lives=verdict(held, Claim()) if held else "free",
        newest=newest,
    )


def _open_end(path: Path, last: Attempt) -> Attempt:
    """An attempt that runs, or died without a word: what its traces tell so far."""
    found = closed(path, last)
    held = read(path)
    runs = held is not None and verdict(held, Claim()) != "free"
    return found if not runs else Attempt(**{**vars(found), "reason": "", "detail": ""})


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file, one line at a time; torn lines are passed over."""
    if path.exists():
        with path.open("rb") as stream:
            for line in stream:
                with suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found


def read_columns(path: Path) -> dict[str, Column]:
    """The numbers of ``metrics.jsonl``."""
    found = {name: array("d") for name in COLUMNS}
    for record in records(path):
        for name, column in found.items():
            column.append(record.get(name, np.nan))
    return {name: np.asarray(column) for name, column in found.items()}


def read_vitals(path: Path) -> dict[str, Vital]:
    """The figures of ``vitals.jsonl``."""
    found: dict[str, Vital] = {}
    for record in records(path):
        step = record.pop("step", None)
        if step is None:
            continue
        for name, value in flat(record).items():
            vital = found.setdefault(name, Vital())
            vital.steps.append(step)
            vital.values.append(value)
    return found


def _hours(columns: Mapping[str, Column], attempts: list[Attempt], newest: float) -> Column:
    """When every step was done, from the attempts' clock and the steps' seconds.

    Evaluations and saves lie between steps: what is left of an attempt's time is spread over them.
    """
    steps, seconds = columns["step"], np.nan_to_num(columns["step_seconds"])
    hours = np.cumsum(seconds)
    started = [a for a in attempts if a.first_step]
    ends = [after.resumed_at for _, after in pairwise(started)] + [np.inf]
    for attempt, end in zip(started, ends, strict=True):
        mine = (steps > attempt.resumed_at) & (steps <= end)
        if mine.any():
            took = np.cumsum(seconds[mine]) - seconds[mine][0]
            ended = attempt.ended or newest
            share = mine.sum() / max(1, attempt.step - attempt.resumed_at)
            factor = (ended - attempt.first_step) * share / max(took[-1], 1e-9)
            begun = attempt.first_step - attempts[0].started
            hours[mine] = begun + took * float(np.clip(factor, 1.0, 3.0))
    return np.asarray(hours / 3600)


def _saved(path: Path, attempts: list[Attempt]) -> Iterator[tuple[int, float, int]]:
    for folder in reversed(checkpoints(saved_in(path, attempts))):
        with suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir())
            yield step_of(folder), folder.stat().st_mtime, size


def saved_in(path: Path, attempts: Sequence[Attempt]) -> Path:
    """Folder of a run's checkpoints, also where the run was told it from another folder."""
    told = Path(attempts[-1].checkpoints if attempts else "")
    return told if told != Path() and told.is_dir() else path / "checkpoints"


def now() -> float:
    """Seconds since 1970; tests have their own."""
    return time.time()
