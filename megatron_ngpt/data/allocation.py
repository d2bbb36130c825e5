"""Which corpus of a blend each sample comes from."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

# Weights are exact when they fit a period of so many samples, and else rounded to 1 / PERIOD.
PERIOD = 10**6


class Allocation:
    """Deals samples to corpora so that no corpus is ever a whole sample off its share.

    The shares are k_c / D with integers k_c that add up to D, so the order repeats every D samples
    and one period of it is kept. Within the period, sample j = 0, 1, ... of corpus c has a window:
    not before slot floor(j D / k_c), and before slot ceil((j + 1) D / k_c). Wherever in its window
    each falls, abs(count_c(n) - n k_c / D) < 1 holds for every n. Dealing every slot to the open
    window that ends first keeps all windows: dealing each corpus k_c / D of every slot would fill
    them all, and for jobs of unit length earliest deadline first succeeds whenever anything does
    (the chairman assignment problem, Tijdeman 1980; Pfair windows, Baruah et al. 1996).

    Args:
        weights: of each corpus, above 0. Their decimal notation counts: 0.1 is a tenth.

    Attributes:
        period: D, at most PERIOD or the number of corpora.
        quotas: int64[corpora], k_c.

    Raises:
        ValueError: a weight is less than 1 / PERIOD of their sum and they have to be rounded.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        quotas = _quotas(weights)
        self.period = sum(quotas)
        self.quotas = np.array(quotas, np.int64)
        self._corpora = _earliest_deadline_first(self.quotas)
        self._by_corpus = np.argsort(self._corpora, kind="stable")
        self._firsts = np.cumsum(self.quotas) - self.quotas
        self._ordinals = np.empty(self.period, np.int64)
        self._ordinals[self._by_corpus] = np.arange(self.period) - np.repeat(self._firsts, quotas)

    def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus of each sample, and its number among the corpus's own: int64[B] to two of them."""
        periods, slots = np.divmod(numbers, self.period)
        corpora = self._corpora[slots]
        return corpora, periods * self.quotas[corpora] + self._ordinals[slots]

    def counts(self, number: int) -> np.ndarray:
        """Samples of each corpus before sample ``number`` of the blend: int64[corpora]."""
        periods, slots = divmod(number, self.period)
        started = np.bincount(self._corpora[:slots], minlength=len(self.quotas))
        return periods * self.quotas + started

    def number(self, corpus: int, ordinal: int) -> int:
        """Which sample of the blend is sample ``ordinal`` of a corpus: the inverse of a call."""
        periods, rest = divmod(ordinal, int(self.quotas[corpus]))
        return periods * self.period + int(self._by_corpus[self._firsts[corpus] + rest])


def _quotas(weights: Sequence[float]) -> list[int]:
    whole = _whole(weights)
    total, common = sum(whole), gcd(*whole)
    if total // common <= max(PERIOD, len(whole)):
        return [weight // common for weight in whole]
    quotas = [weight * PERIOD // total for weight in whole]
    remainders = [-(weight * PERIOD % total) / total for weight in whole]
    for corpus in np.argsort(np.array(remainders, float), kind="stable")[: PERIOD - sum(quotas)]:
        quotas[corpus] += 1
    if 0 in quotas:
        raise ValueError(
            f"weight {weights[quotas.index(0)]} is less than {1 / PERIOD:g} of the blend's sum "
            f"{sum(weights):g}: raise it or leave the corpus out"
        )
    return quotas


def _whole(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the weights, exactly."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    return [weight.numerator * (unit // weight.denominator) for weight in exact]


def _earliest_deadline_first(quotas: np.ndarray) -> np.ndarray:
    """int64[period]: corpus of each slot."""
    period, corpora = int(quotas.sum()), np.repeat(np.arange(len(quotas)), quotas)
    ordinals = np.arange(period) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    opens = ordinals * period // quotas[corpora]
    closes = -(-(ordinals + 1) * period // quotas[corpora])
    by_opening = np.argsort(opens, kind="stable")
    keys = (closes * len(quotas) + corpora)[by_opening].tolist()
    opened = np.cumsum(np.bincount(opens, minlength=period)).tolist()
    dealt, done = [0] * period, 0
    waiting: list[int] = []
    for slot, upto in enumerate(opened):
        for key in keys[done:upto]:
            heapq.heappush(waiting, key)
        done = upto
        dealt[slot] = heapq.heappop(waiting)
    return np.array(dealt, np.int64) % len(quotas)
