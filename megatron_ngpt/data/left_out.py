"""Samples of the stream that a run leaves out, and those that are left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ranges = Sequence[tuple[int, int]]
"""From the first to one past the last, in ascending order."""


def in_samples(tokens: Ranges, seq_len: int) -> list[tuple[int, int]]:
    """Ranges of tokens as ranges of samples of ``seq_len``, which hold at least these tokens."""
    return [(first // seq_len, -(-end // seq_len)) for first, end in tokens]


def remaining(consumed: int, count: int, left_out: Ranges) -> np.ndarray:
    """Numbers of the next ``count`` samples from ``consumed`` on that count: int64[count]."""
    found = []
    for first, end in left_out:
        taken = min(count, max(0, first - consumed))
        found.append(np.arange(consumed, consumed + taken))
        count -= taken
        consumed = max(consumed + taken, end) if count else consumed
    found.append(np.arange(consumed, consumed + count))
    return np.concatenate(found)
