"""A keyed permutation of [0, size) that is computed, not stored.

A Feistel network over two halves of unequal size (Black and Rogaway, "Ciphers with Arbitrary
Finite Domains", CT-RSA 2002, section 5): an index is written as ``left * columns + right`` with
rows = ceil(sqrt(size)) and columns = ceil(size / rows), and each round adds a keyed hash of one
half to the other, modulo that half's range. That permutes rows * columns numbers, fewer than
sqrt(size) of them above size; an index that lands there walks on along its cycle until it is
back inside, which keeps the map a bijection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# The order of every run's data depends on these numbers; changing one reshuffles them all.
_ROUNDS = 8
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_KEY_BYTES = 8


class Permutation:
    """Bijection of [0, size) chosen by a key; time and memory O(1) per index.

    Args:
        size: number of indices, from 1 to 2**62; or int64[B] to permute each of B indices by a
            bijection of its own.
        key: integers that choose the order, for example (seed, epoch); with B sizes, B such keys.
    """

    def __init__(
        self, size: int | np.ndarray, key: tuple[int, ...] | Sequence[tuple[int, ...]]
    ) -> None:
        sizes = np.asarray(size, np.int64)
        assert ((sizes >= 1) & (sizes <= 1 << 62)).all(), size
        self.size = size
        rows = _ceil_sqrt(sizes)
        columns = -(-sizes // rows)
        self._ranges = np.stack([rows, columns]).astype(np.uint64)
        keys: Any = key if sizes.ndim else [key]
        self._keys = np.array([_round_keys(one) for one in keys], np.uint64).T

    def __call__(self, indices: ArrayLike) -> np.ndarray:
        """Where each index goes: [0, size) to int64 in [0, size), same shape, () for one int."""
        return self._walk(indices, inverse=False)

    def inverse(self, indices: ArrayLike) -> np.ndarray:
        """Where each index comes from: ``inverse(self(i)) == i``."""
        return self._walk(indices, inverse=True)

    def _walk(self, indices: ArrayLike, inverse: bool) -> np.ndarray:
        starts = np.asarray(indices, np.int64)
        # One dimension at least: numpy's scalars warn where its arrays wrap around silently.
        images = starts.astype(np.uint64).reshape(-1)
        sizes = np.broadcast_to(np.asarray(self.size, np.uint64), images.shape)
        ranges = np.broadcast_to(self._ranges.reshape(2, -1), (2, len(images)))
        keys = np.broadcast_to(self._keys.reshape(_ROUNDS, -1), (_ROUNDS, len(images)))
        outside = np.arange(len(images))
        while len(outside):
            images[outside] = _network(
                images[outside], ranges[:, outside], keys[:, outside], inverse
            )
            outside = outside[images[outside] >= sizes[outside]]
        return images.astype(np.int64).reshape(starts.shape)


def _network(
    indices: np.ndarray, ranges: np.ndarray, keys: np.ndarray, inverse: bool
) -> np.ndarray:
    halves = list(np.divmod(indices, ranges[1]))
    for number in reversed(range(_ROUNDS)) if inverse else range(_ROUNDS):
        side = number % 2
        span = ranges[side]
        shift = _mix(halves[1 - side] ^ keys[number]) % span
        halves[side] = (halves[side] + (span - shift if inverse else shift)) % span
    return halves[0] * ranges[1] + halves[1]


@lru_cache(maxsize=4096)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    name = ",".join(str(number) for number in key).encode()
    digest = hashlib.blake2b(name, digest_size=_ROUNDS * _KEY_BYTES).digest()
    return np.frombuffer(digest, "<u8")


def _ceil_sqrt(sizes: np.ndarray) -> np.ndarray:
    roots = np.sqrt(sizes.astype(np.float64)).astype(np.int64)
    # Floats are a few units off at worst where they no longer hold every integer.
    roots = np.where(roots * roots >= sizes, roots, roots + 1)
    return np.where((roots - 1) * (roots - 1) >= sizes, roots - 1, roots)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit depends on every bit."""
    words = (words ^ (words >> _SHIFTS[0])) * _MULTIPLIERS[0]
    words = (words ^ (words >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return words ^ (words >> _SHIFTS[2])
