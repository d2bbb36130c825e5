"""Has a bit of a weight flipped between two steps? The sum of the bits of every vector tells.

The projection leaves the fp32 masters as the next step has to find them, however long forward and
backward, an evaluation or a save take in between. So the bits of each vector, read as 32-bit
integers, are added up twice: as the projection leaves them, and as the optimizer finds them. Sums
of integers are exact and depend on no order; one flipped bit changes its sum by a power of two, so
that none is missed, whatever its place, and nothing else ever looks like one. Where C++ steps
(adamw.cpp), both sums are by-products of passes that read the masters anyway; elsewhere they take
two more. Each rank sums the pieces that it holds, without communication, and so knows that it was
its own memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ngpt.engine.projection import Projection


class Checksums:
    """Of all vectors of a projection, as this rank holds them.

    Args:
        projection: whose vectors; where it is ``fused``, it adds to ``left`` as it scales.

    Attributes:
        left: sums [vectors] of the bits that the last step has left, int32.
        found: the same of those that were there when somebody looked last.
    """

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.left = torch.zeros_like(projection.squares, dtype=torch.int32)
        self.found = torch.zeros_like(self.left)
        self.by_step = False
        if projection.fused:
            projection.bits = self.left

    @torch.no_grad()
    def begin(self, by_step: bool) -> list[str]:
        """A step comes; the vectors that differ, unless it adds up itself what it finds."""
        self.by_step = by_step
        self.found.zero_()
        return [] if by_step else self.look()

    @torch.no_grad()
    def stepped(self) -> list[str]:
        """Before the projection: the vectors of which the step has found others than were left."""
        which = self._differing() if self.by_step else []
        self.left.zero_()
        return which

    @torch.no_grad()
    def projected(self) -> None:
        """After it."""
        if not self.projection.fused:
            self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Masters are as they shall be: after they were written from outside, or a step."""
        self._add_up(self.left)

    @torch.no_grad()
    def look(self) -> list[str]:
        """The vectors that are not as they were left, now; each is told once."""
        self._add_up(self.found)
        which = self._differing()
        self.left.copy_(self.found)
        return which

    def _differing(self) -> list[str]:
        which = (self.left != self.found).nonzero().flatten().tolist()
        return [self.projection.named(vector) for vector in which]

    def _add_up(self, sums: Tensor) -> None:
        sums.zero_()
        for values, dim, where in self.projection.pieces:
            # int64 holds any such sum; what counts is that the lower 32 bits are those of C++
            sums[where] += values.view(torch.int32).sum(dim, dtype=torch.int64).to(torch.int32)
