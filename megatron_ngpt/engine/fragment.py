"""The piece of a parameter that one rank's optimizer owns, and its shape as rectangles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.parallel.shard import Shard


class Rectangle(NamedTuple):
    """A box inside the unsharded parameter, and where its values lie in a fragment."""

    offsets: tuple[int, ...]
    """First index in the unsharded parameter."""

    sizes: tuple[int, ...]
    """Extent; same number of dimensions as the parameter."""

    start: int
    """First of its values in the fragment."""

    stop: int
    """One past its last value in the fragment."""

    def view(self, values: Tensor) -> Tensor:
        """This rectangle of a fragment's flat values."""
        return values[self.start : self.stop].view(self.sizes)


@dataclass(frozen=True)
class Fragment:
    """A run of consecutive elements of this rank's shard of a parameter.

    ZeRO cuts the flattened parameters of a group into equal partitions, so a fragment may begin and
    end inside a row. It is empty where a rank holds nothing of the parameter.
    """

    spec: ParameterSpec
    shard: Shard
    """The tensor-parallel piece that the flat index runs over."""
    start: int
    """Index of the first element in the flattened shard."""
    length: int
    """Number of elements."""
    flat: Tensor
    """The optimizer's fp32 parameter that holds it among others."""
    offset: int
    """Where it begins in ``flat``."""
    group: int
    """Number of ``flat`` among the optimizer's parameters; steps happen one ``flat`` at a time."""

    @property
    def master(self) -> Tensor:
        """Fp32 master values [length], a view."""
        return self.of(self.flat.data)

    def of(self, like_flat: Tensor) -> Tensor:
        """The same elements of a tensor laid out like ``flat``, such as Adam's averages."""
        return like_flat.view(-1)[self.offset : self.offset + self.length]

    def rectangles(self) -> Iterator[Rectangle]:
        """At most three boxes: the rest of a row, whole rows, the beginning of a row."""
        shape, origin = self.shard.shape, self.shard.origin
        if len(shape) == 1:
            if self.length:
                yield Rectangle((origin[0] + self.start,), (self.length,), 0, self.length)
            return
        for row, column, rows, columns, at in _row_pieces(self.start, self.length, shape[1]):
            offsets = (origin[0] + row, origin[1] + column)
            yield Rectangle(offsets, (rows, columns), at, at + rows * columns)


def _row_pieces(start: int, length: int, width: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Cut flat [start, start + length) of rows this wide: (row, column, rows, columns, at)."""
    position, stop = start, start + length
    while position < stop:
        row, column = divmod(position, width)
        rows = 1 if column else max(1, (stop - position) // width)
        columns = min(width - column, stop - position) if rows == 1 else width
        yield row, column, rows, columns, position - start
        position += rows * columns
