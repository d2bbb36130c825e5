"""How many times fewer tokens a run needs for the first one's validation loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_ngpt.report.drawing import Line, Panel, Section
from megatron_ngpt.report.reading import RunData
from megatron_ngpt.study.factor import Factor, factors


def curve(run: RunData) -> list[tuple[float, float]]:
    """Tokens and validation loss at every evaluation."""
    known = np.isfinite(run.columns["valid_loss"])
    pairs = zip(run.columns["tokens"][known], run.columns["valid_loss"][known], strict=True)
    return [(float(tokens), float(loss)) for tokens, loss in pairs]


def compared(first: RunData, other: RunData) -> list[Factor]:
    """The factor at each evaluation of the first run at which it is known."""
    base, theirs = curve(first), curve(other)
    if len(base) < 2 or len(theirs) < 2:
        return []
    return [found for found in factors([base], [theirs]) if np.isfinite(found.factor)]


def told(first: RunData, others: Sequence[RunData]) -> list[str]:
    """A sentence for each other run."""
    lines = []
    for other in others:
        found = compared(first, other)
        if found:
            last = found[-1]
            times, more = max(last.factor, 1 / last.factor), last.factor < 1
            lines.append(
                f"{other.name} needs {times:.2f} times {'more' if more else 'fewer'} tokens than "
                f"{first.name} for its validation loss of {last.loss:.3f}"
            )
        else:
            lines.append(f"{other.name} and {first.name} have no validation loss in common")
    return lines


def factor_panel(runs: Sequence[RunData]) -> Section | None:
    """The factor along the first run; None where there is none."""
    first, *others = runs
    panel = Panel("factor", f"Times fewer tokens than {first.name} for its validation loss", "")
    panel.x_title, panel.wide = f"tokens of {first.name}", True
    for number, other in enumerate(others, 1):
        if found := compared(first, other):
            x = {"": [f.tokens for f in found]}
            y = [round(f.factor, 4) for f in found]
            panel.lines.append(Line(other.name, x, [*y], colour=number, points=True))
    if not panel.lines:
        return None
    return Section("Tokens to equal loss", "", [panel])
