"""Back to the sphere after each step, on ZeRO's shards, with one all-reduce.

ZeRO cuts vectors apart. Each rank adds up the squares of the pieces it holds, one all-reduce of one
float per vector makes the sums whole, and each rank scales its own pieces. It runs on the fp32
masters, after their update and before any low-precision copy is made from them, so both stay on the
sphere. Tensor parallelism needs no communication: it never splits a vector (see model/spec.py).
Source: arXiv 2410.01131, section 2.6, step 2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.fused_adamw import scale_vectors


class Projection:
    """Normalises the vectors of a set of fragments in place, or their groups, as the table says.

    Attributes set from outside:
        fused: whether C++ scales (engine/fused_adamw.py).
        summed: whether the optimizer has just left its sums in ``squares``.
        bits: where C++ adds up the bits of every vector as it scales, None for nowhere.

    Args:
        fragments: this rank's fragments of the same parameters on every rank, in the same order;
            free parameters among them are left alone. Empty fragments count.
        group: the ranks that hold the other pieces, None when every rank holds whole vectors.
    """

    def __init__(self, fragments: Sequence[Fragment], group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.pieces: list[tuple[Tensor, int, slice]] = []
        self.flats: list[Tensor] = []  # of each piece, the flat parameter that it is a view of
        self.fused = False
        self.summed = False
        self.bits: Tensor | None = None
        self.owners: list[tuple[int, Fragment]] = []  # from which vector on, whose they are
        self.padding: list[slice] = []
        self.vectors, self.slack = 0, 0.0
        for fragment in fragments:
            if fragment.spec.norm_dim is not None:
                self._add(fragment, fragment.spec.norm_dim)
        device = fragments[0].flat.device if fragments else None
        self.squares = torch.zeros(self.vectors, device=device)

    def _add(self, fragment: Fragment, norm_dim: int) -> None:
        """Note which sums each rectangle of a fragment takes part in, group by group."""
        axis = 1 - norm_dim  # the dimension that counts the vectors
        spec, count = fragment.spec, fragment.shard.shape[axis]
        size = spec.shape[norm_dim] // spec.groups
        for box in fragment.rectangles():
            values, begin = box.view(fragment.master), box.offsets[norm_dim]
            end = begin + box.sizes[norm_dim]
            for group in range(begin // size, -(-end // size)):
                low, high = max(begin, group * size), min(end, (group + 1) * size)
                piece = values.narrow(norm_dim, low - begin, high - low)
                first = self.vectors + group * count
                first += box.offsets[axis] - fragment.shard.origin[axis]
                self.pieces.append((piece, norm_dim, slice(first, first + box.sizes[axis])))
                self.flats.append(fragment.flat)
        for _ in range(spec.groups):
            self.owners.append((self.vectors, fragment))
            real = self.vectors + fragment.shard.real[axis]
            self.vectors += count
            self.padding.append(slice(real, self.vectors))
        self.slack = max(self.slack, spec.slack)

    def __call__(self) -> None:
        """Scale every vector to length 1; collective over the group, 4 bytes per vector."""
        self._scale(self.squares)

    def alike(self) -> None:
        """The same with sums in fp64, whose rounding does not tell how the vectors were cut."""
        self._scale(self.squares.double())

    def named(self, vector: int) -> str:
        """Which row or column of which unsharded parameter a vector, or a group of it, is."""
        first, fragment = self.owners[bisect_right(self.owners, vector, key=itemgetter(0)) - 1]
        axis = 1 - (fragment.spec.norm_dim or 0)
        number = vector - first + fragment.shard.origin[axis]
        return f"{fragment.spec.name}, {('row', 'column')[axis]} {number}"

    @torch.no_grad()
    def error(self) -> Tensor:
        """Largest distance of a vector's length from 1, or from what its slack allows, a scalar;
        collective, as a call is."""
        if not self.vectors:
            return torch.zeros((), device=self.squares.device)
        self._sum(self.squares)
        for where in self.padding:
            self.squares[where] = 1.0
        lengths = self.squares.sqrt()
        return (lengths - self._bound(lengths)).abs().max()

    def _bound(self, lengths: Tensor) -> Tensor:
        """What lengths should be."""
        return lengths.clamp(1 - self.slack, 1 + self.slack)

    def _sum(self, squares: Tensor) -> None:
        """Squared length of every vector."""
        if not self.summed:
            squares.zero_()
            for values, dim, where in self.pieces:
                lengths = torch.linalg.vector_norm(values, dim=dim, dtype=squares.dtype)
                squares[where] += lengths.square()
        self.summed = False
        if self.group is not None:
            dist.all_reduce(squares, group=self.group)

    @torch.no_grad()
    def _scale(self, squares: Tensor) -> None:
        if not self.vectors:
            return
        self._sum(squares)
        factor = squares.clamp_min(1e-24).rsqrt()
        if self.slack:
            factor *= self._bound(squares.sqrt())
        factor = factor.float()
        for values, dim, where in self.pieces:
            if self.fused:
                bits = None if self.bits is None else self.bits[where]
                scale_vectors(values, dim, factor[where], bits)
            else:
                values.mul_(factor[where].unsqueeze(dim))
