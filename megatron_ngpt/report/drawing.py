"""What is drawn, apart from how: lines over steps, tokens or hours, thinned out for the eye."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_ngpt.report.events import Moment
from megatron_ngpt.report.reading import Column, RunData

AXES = ("tokens", "step", "hours")
MOST = 500
"""Points of a line."""


@dataclass
class Line:
    """One curve."""

    name: str
    x: dict[str, list[Any]]
    """Numbers, or names of bars: by axis, or under "" where there is one axis alone."""
    y: list[float | None]
    colour: int = 0
    """Number of the palette's colour, or place on the ramp."""
    ramp: float = -1.0
    """Between 0 and 1 for colours that say an order, as of layers; -1 for the palette."""
    low: list[float | None] = field(default_factory=list)
    """Bounds of a band around it."""
    high: list[float | None] = field(default_factory=list)
    points: bool = False
    dashed: bool = False
    fill: bool = False


@dataclass
class Mark:
    """A vertical line."""

    x: dict[str, float]
    number: int
    kind: str
    text: str
    colour: int = -1
    """Of the run where there are several, -1 for that of the kind."""


@dataclass
class Panel:
    """One picture."""

    key: str
    title: str
    unit: str
    lines: list[Line] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    x_title: str = ""
    """Of an axis of its own; "" for the one that the reader chooses."""
    log: bool = False
    bars: bool = False
    wide: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        lines = [dict(vars(line)) for line in self.lines]
        return {**vars(self), "lines": lines, "marks": [vars(mark) for mark in self.marks]}


@dataclass
class Section:
    """Pictures that belong together."""

    title: str
    text: str
    panels: list[Panel]
    open: bool = True
    layers: int = 0
    """How many layers have colours of the ramp in it."""


def thinned(run: RunData, values: Column, name: str, band: bool = False, **style: Any) -> Line:
    """A column as a line of at most MOST points, each the mean of its neighbours; with ``band``
    their smallest and largest, too, so that no spike is lost."""
    count = len(values)
    if not count:
        return Line(name, {axis: [] for axis in AXES}, [], **style)
    edges = np.unique(np.linspace(0, count, min(MOST, count) + 1).astype(int))
    starts = edges[:-1]
    sizes, known = np.diff(edges), np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.add.reduceat(np.where(known, values, 0.0), starts)
        means = sums / np.add.reduceat(known.astype(float), starts)
    line = Line(name, at_axes(run, starts + sizes - 1), rounded(means), **style)
    if band and count > MOST:
        line.low = rounded(np.minimum.reduceat(np.where(known, values, np.inf), starts))
        line.high = rounded(np.maximum.reduceat(np.where(known, values, -np.inf), starts))
    return line


def scattered(run: RunData, values: Column, name: str, **style: Any) -> Line:
    """The values that a column has, which most of its steps have not."""
    where = np.flatnonzero(np.isfinite(values))
    where = where[np.unique(np.linspace(0, len(where) - 1, min(MOST, len(where))).astype(int))]
    return Line(name, at_axes(run, where), rounded(values[where]), points=True, **style)


def vital(run: RunData, key: str, name: str, **style: Any) -> Line | None:
    """A figure of the model; None where it was never taken."""
    found = run.vitals.get(key)
    if found is None or not run.steps:
        return None
    steps = np.asarray(found.steps)
    some = np.unique(np.linspace(0, len(steps) - 1, min(MOST // 2, len(steps))).astype(int))
    x = {axis: rounded([run.place(s, axis) for s in steps[some]]) for axis in ("tokens", "hours")}
    values = np.asarray(found.values, dtype=np.float64)[some]
    return Line(name, {**x, "step": steps[some].tolist()}, rounded(values), **style)


def at_axes(run: RunData, where: Any) -> dict[str, list[float]]:
    """Places of some steps on every axis."""
    return {axis: [v or 0.0 for v in rounded(run.at(axis)[where], 7)] for axis in AXES}


def rounded(values: Iterable[float], digits: int = 5) -> list[Any]:
    """For a file that is read over a network: so many digits, None for what is no number."""
    return [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in values]


def marks(run: RunData, found: Sequence[Moment], colour: int = -1) -> list[Mark]:
    """Moments as marks."""
    return [
        Mark(
            {axis: run.place(moment.step, axis) for axis in AXES},
            moment.number,
            moment.kind,
            "<br>".join(moment.texts),
            colour,
        )
        for moment in found
    ]
