"""Where a loss has its lowest point on a logarithmic grid, and how that point moves.

Positions are log2 of a learning rate, all over the number of grid points per octave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

REACH = 2
"""Grid points wanted on both sides of the lowest one; all of them take part in the parabola."""


def walk(
    loss: Callable[[float], float], start: float, per_octave: int, limit: int = 40
) -> dict[float, float]:
    """Losses at neighbouring points of the grid, with ``REACH`` of them on both sides of the best.

    Walks downhill from the grid point nearest to ``start`` (log2), one evaluation a step.

    Raises:
        ValueError: no bottom was found within ``limit`` evaluations.
    """
    first = round(start * per_octave)
    found = {first: loss(first / per_octave)}
    while True:
        best = min(found, key=found.__getitem__)
        if best - min(found) < REACH:
            n = min(found) - 1
        elif max(found) - best < REACH:
            n = max(found) + 1
        else:
            return {n / per_octave: found[n] for n in sorted(found)}
        if len(found) == limit:
            raise ValueError(f"no bottom in {limit} points from 2^{start:g}: {found}")
        found[n] = loss(n / per_octave)


def bottom(losses: dict[float, float]) -> float:
    """log2 of the best learning rate: lowest point of the parabola through the best of a walk and
    ``REACH`` points on both sides, by least squares; the best itself where it bends downwards."""
    xs = sorted(losses)
    at = xs.index(min(losses, key=losses.__getitem__))
    near = [x for x in xs[max(0, at - REACH) : at + REACH + 1] if math.isfinite(losses[x])]
    bend, slope, _ = np.polyfit(np.array(near) - xs[at], [losses[x] for x in near], 2)
    if bend <= 0:
        return xs[at]
    return float(np.clip(xs[at] - slope / (2 * bend), near[0], near[-1]))


def drift(widths: Sequence[int], bottoms: Sequence[float]) -> float:
    """Octaves that the best learning rate moves per doubling of the width: a line's slope; not a
    number for a single width."""
    if len(widths) < 2:
        return math.nan
    return float(np.polyfit(np.log2(widths), bottoms, 1)[0])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is not a number for a single value."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(error)
