"""What happened to a run, step by step, and what its time went into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from megatron_ngpt.report.reading import RunData
from megatron_ngpt.run.attempts import Attempt
from megatron_ngpt.run.ledger import Entry

UNTOLD = ("train.stop_at", "train.exit_after", "logging.", "checkpoint.", "train.accept_changes")
"""Settings whose change says nothing of what is computed."""
_WHY = {
    "": "an end without a word",
    "killed": "a kill",
    "signal": "a signal",
    "walltime": "a time limit",
    "done": "an end that was asked for",
    "error": "an error",
    "hang": "a hang",
    "rank died": "the death of a rank",
    "refused": "a refusal",
}


@dataclass(frozen=True)
class Event:
    """Something that a curve is marked with."""

    step: float
    kind: str
    """Of KINDS."""
    text: str


@dataclass(frozen=True)
class Moment:
    """Events of one step, under one number in pictures and lists."""

    number: int
    step: float
    kind: str
    """The first of KINDS among them."""
    texts: tuple[str, ...]


KINDS = ("fault", "bad", "warn", "topology", "settings", "restart", "code", "note")
"""The worst first; bad, warn and note are what the verdict found in the curves."""


def moments(run: RunData, findings: Sequence[Event] = ()) -> list[Moment]:
    """All that happened to a run, and what was found in its curves, numbered from 1."""
    found = sorted([*events(run), *findings], key=lambda event: event.step)
    groups = [(step, list(group)) for step, group in groupby(found, key=lambda event: event.step)]
    return [
        Moment(
            number,
            step,
            min((event.kind for event in group), key=KINDS.index),
            tuple(event.text for event in group),
        )
        for number, (step, group) in enumerate(groups, 1)
    ]


def events(run: RunData) -> list[Event]:
    """All of a run, in the order of steps."""
    return sorted([*_restarts(run), *_changes(run), *_faults(run)], key=lambda event: event.step)


def _restarts(run: RunData) -> Iterator[Event]:
    for before, after in pairwise(run.attempts):
        if after.resumed_at >= 0:
            lost = max(0, before.step - after.resumed_at)
            why = _WHY.get(before.reason, before.reason)
            again = f"; {lost} steps were done again" if lost else ""
            text = f"start {after.number}, after {why}{again}"
            yield Event(after.resumed_at, "restart", text)


def _changes(run: RunData) -> Iterator[Event]:
    for before, after in pairwise(run.ledger):
        if before.topology != after.topology:
            yield Event(after.step, "topology", f"topology: {_shape(before)} → {_shape(after)}")
        for name in sorted(before.settings.keys() | after.settings.keys()):
            old, new = before.settings.get(name), after.settings.get(name)
            # one that a version did not know has no value there
            known = name in before.settings and name in after.settings
            if known and old != new and not name.startswith(UNTOLD):
                yield Event(after.step, "settings", f"{name}: {old} → {new}")
        if before.code != after.code:
            yield Event(after.step, "code", f"code: {before.code} → {after.code}")


def _shape(entry: Entry) -> str:
    return " ".join(f"{axis}{size}" for axis, size in entry.topology.items()) or "?"


def _faults(run: RunData) -> Iterator[Event]:
    for fault in run.faults:
        back = f" to step {fault.back_to:,}" if fault.back_to >= 0 else ""
        yield Event(float(fault.step), "fault", f"{fault.problem}: {fault.action}{back}")


def time_lost(run: RunData) -> list[tuple[str, float]]:
    """Seconds since the first start by what they went into, the steps that count first."""
    if not run.attempts:
        return []
    found: dict[str, float] = {"steps that count": float(np.nansum(run.columns["step_seconds"]))}
    typical = float(np.nanmedian(run.columns["step_seconds"])) if run.steps else 0.0
    for attempt in run.attempts:
        began = attempt.first_step or attempt.ended
        _add(found, "starting up", began - attempt.started)
    for before, after in pairwise(run.attempts):
        why = _WHY.get(before.reason, before.reason)
        _add(found, f"waiting after {why}", after.started - before.ended)
        if after.resumed_at >= 0:
            _add(found, f"steps done again after {why}", typical * _lost(before, after))
    last = run.attempts[-1]
    whole = (last.ended if last.reason else run.newest) - run.attempts[0].started
    _add(found, "evaluation, saves, other", whole - sum(found.values()))
    return list(found.items())


def _lost(before: Attempt, after: Attempt) -> int:
    return max(0, before.step - after.resumed_at)


def _add(found: dict[str, float], cause: str, seconds: float) -> None:
    if seconds > 0:
        found[cause] = found.get(cause, 0.0) + seconds


def corpus_tokens(run: RunData) -> float:
    """Tokens of the training corpora of the last start, validation's share not counted; 0 where it
    is not known."""
    if not run.ledger:
        return 0.0
    total = 0.0
    for blend in run.ledger[-1].corpora:
        for corpus in blend.get("corpora", []):
            total += float((corpus.get("identity") or {}).get("tokens", 0))
    return total
