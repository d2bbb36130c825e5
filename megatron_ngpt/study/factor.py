"""How many times fewer tokens a contestant needs for the baseline's loss, with its spread.

For every number of tokens t at which the baseline was evaluated, its mean curve says a loss; the
contestant's mean curve, linear in the logarithm of tokens between evaluations, says at how many
tokens it had that loss; the factor is t over these. The band comes from the bootstrap over seeds
(Efron 1979): with n and m seeds there are n^n m^m ways to draw them with replacement; all are taken
when they are at most 2,000, else 2,000 random ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = Sequence[Sequence[float]]
"""Pairs of tokens and loss, in the order of tokens."""

MOST = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Factor:
    """Tokens of the baseline over tokens of the contestant, for equal loss."""

    tokens: float
    """Tokens of the baseline."""
    loss: float
    """Its mean loss there, nats."""
    factor: float
    """Not a number where the contestant's curve never had that loss between its ends."""
    low: float
    high: float
    """Bounds of 95 % of the bootstrap's factors; not a number with one seed on both sides, nor
    where too many of the drawn curves never had that loss for the bound to be known."""


def mean_curve(curves: Sequence[Curve]) -> NDArray[np.float64]:
    """Mean loss over seeds [points, 2] at the tokens that all curves have.

    Raises:
        ValueError: they have none in common.
    """
    common = sorted(set.intersection(*({point[0] for point in curve} for curve in curves)))
    if not common:
        raise ValueError("the curves of these seeds have no number of tokens in common")
    tables = [{point[0]: point[1] for point in curve} for curve in curves]
    return np.array([[t, np.mean([table[t] for table in tables])] for t in common])


def tokens_at(curve: NDArray[np.float64], loss: float) -> float:
    """Fewest tokens at which a curve [points, 2] has a loss; infinite where it never came there, 0
    where it was past it at its first evaluation."""
    lowest = np.minimum.accumulate(curve[:, 1])  # a bump upwards does not undo what was reached
    if loss > lowest[0]:
        return 0.0
    if loss < lowest[-1]:
        return math.inf
    after = int(np.argmax(lowest <= loss))
    if after == 0:
        return float(curve[0, 0])
    (t0, t1), (l0, l1) = np.log(curve[after - 1 : after + 1, 0]), lowest[after - 1 : after + 1]
    return float(np.exp(t0 + (t1 - t0) * (l0 - loss) / (l0 - l1)))


def factors(baseline: Sequence[Curve], contestant: Sequence[Curve]) -> list[Factor]:
    """The factor along the whole curve, a :class:`Factor` for each evaluation of the baseline."""
    base = mean_curve(baseline)
    middle = _factors(base, mean_curve(contestant))
    drawn = np.array([_factors(*pair, base[:, 0]) for pair in _draws(baseline, contestant)])
    found = []
    for n, (tokens, loss) in enumerate(base):
        low, high = _bounds(drawn[:, n]) if drawn.size else (math.nan, math.nan)
        known = middle[n] if 0 < middle[n] < math.inf else math.nan
        found.append(Factor(float(tokens), float(loss), known, low, high))
    return found


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of the bootstrap; draws of factor 0 or infinity are below or above all that are known."""
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(values, ends, method="inverted_cdf")
    return (float(low) or math.nan), (float(high) if math.isfinite(high) else math.nan)


def _factors(
    base: NDArray[np.float64],
    other: NDArray[np.float64],
    at: NDArray[np.float64] | None = None,
) -> list[float]:
    lookup = dict(base)
    tokens = base[:, 0] if at is None else at
    with np.errstate(divide="ignore"):
        return [float(np.float64(t) / tokens_at(other, lookup[t])) for t in tokens]


def _draws(
    baseline: Sequence[Curve], contestant: Sequence[Curve]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Mean curves of both sides with seeds drawn with replacement."""
    n, m = len(baseline), len(contestant)
    if n == 1 and m == 1:
        return
    if n**n * m**m <= MOST:
        ones = [mean_curve([baseline[i] for i in c]) for c in itertools.product(range(n), repeat=n)]
        others = [
            mean_curve([contestant[i] for i in c]) for c in itertools.product(range(m), repeat=m)
        ]
        yield from itertools.product(ones, others)
        return
    random = np.random.default_rng(0)
    for _ in range(MOST):
        one, other = random.integers(n, size=n), random.integers(m, size=m)
        yield mean_curve([baseline[i] for i in one]), mean_curve([contestant[i] for i in other])


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; nan for a single value."""
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return mean, math.nan
    return mean, float(_t95(count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def _t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t, from the usual table; 1.96 from 30 on."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    return table[degrees - 1] if degrees <= len(table) else 2.228 if degrees < 30 else 1.96
