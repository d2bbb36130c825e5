"""What outlives one call of attention: keys and values of earlier tokens, values of layer 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class KeyValueCache:
    """Keys [B, S, K * maps, map_dim] and values [B, S, K, head_dim]; grows with every call.

    They lie in larger buffers, so that a token more is written, not all of them copied.
    """

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """All keys so far, a view."""
        assert self._keys is not None, "nothing was cached yet"
        return self._keys[:, : self.length]

    @property
    def values(self) -> Tensor:
        """All values so far, a view."""
        assert self._values is not None, "nothing was cached yet"
        return self._values[:, : self.length]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values and return all of them."""
        start, self.length = self.length, self.length + keys.shape[1]
        self._keys = _appended(self._keys, keys, start)
        self._values = _appended(self._values, values, start)
        return self.keys, self.values


def _appended(buffer: Tensor | None, more: Tensor, start: int) -> Tensor:
    """The buffer, or one of twice the room, with ``more`` [B, T, ...] in it from ``start`` on."""
    stop = start + more.shape[1]
    if buffer is None or stop > buffer.shape[1]:
        larger = more.new_empty(more.shape[0], max(2 * stop, 64), *more.shape[2:])
        if buffer is not None:
            larger[:, :start] = buffer[:, :start]
        buffer = larger
    buffer[:, start:stop] = more
    return buffer


def side_by_side(caches: Sequence[KeyValueCache], order: Tensor) -> KeyValueCache:
    """Caches of different lengths S as rows of one, each at the end; zeros stand before it.

    Args:
        caches: of the same block.
        order: which of all their rows stand where in the one.
    """
    length = max(cache.length for cache in caches)
    joined = KeyValueCache()
    joined.extend(
        *(
            torch.cat([F.pad(y, (0, 0, 0, 0, length - y.shape[1], 0)) for y in found])[order]
            for found in ([c.keys for c in caches], [c.values for c in caches])
        )
    )
    return joined


@dataclass
class FirstValues:
    """Values of the first layer in one forward pass, for value residuals (arXiv 2410.17897)."""

    values: Tensor | None = None

    def join(self, values: Tensor) -> Tensor:
        """A layer's values averaged with the first layer's; the first layer's are kept."""
        if self.values is None:
            self.values = values
        return 0.5 * (values + self.values)
