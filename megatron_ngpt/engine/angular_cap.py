"""A limit on how far one step turns a unit vector, within the projection's one all-reduce.

Source: arXiv 2608.01284. With the unit vector w before the optimizer's update, the candidate w~
after it and d = w~ - w:

    <w, w~> = 1 + <w, d>        |u|^2 = |d|^2 - <w, d>^2        phi = atan2(|u|, <w, w~>)

where u is what of w~ is tangent to the sphere at w. If phi is above the limit, the new vector is
the one at the limit on the way, cos(limit) w + sin(limit) u / |u|; else w~ / |w~| as ever. Sums of
d keep the small angles of late training exact in fp32, which 1 - <w, w~> would lose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.projection import Projection


class CappedProjection(Projection):
    """A projection that remembers the vectors before the step and limits their turn.

    Costs a copy of this rank's masters during the step, and 12 bytes per vector instead of 4.

    Attributes:
        limit: largest angle of the next call, radians.
    """

    def __init__(self, fragments: Sequence[Fragment], group: dist.ProcessGroup | None) -> None:
        self.free: list[slice] = []
        super().__init__(fragments, group)
        self.limit = torch.pi
        self.before: list[Tensor] = []

    def _add(self, fragment: Fragment, norm_dim: int) -> None:
        first = self.vectors
        super()._add(fragment, norm_dim)
        if fragment.spec.group == "embedding":
            self.free.append(slice(first, self.vectors))

    def remember(self) -> None:
        """Keep the vectors as they are before the update."""
        self.before = [values.clone() for values, _, _ in self.pieces]

    @torch.no_grad()
    def __call__(self) -> None:
        """Turn every vector to where its limit allows, at length 1; collective over the group."""
        if not self.vectors:
            return
        of_new, of_old = self._factors(self._sums())
        for (values, dim, where), old in zip(self.pieces, self.before, strict=True):
            values.mul_(of_new[where].unsqueeze(dim))
            values.addcmul_(old, of_old[where].unsqueeze(dim))
        self.before = []

    def _sums(self) -> Tensor:
        """|w~|^2, <w, d> and |d|^2 of every vector, [3, vectors]."""
        sums = self.squares.new_zeros(3, self.vectors)
        for (values, dim, where), old in zip(self.pieces, self.before, strict=True):
            d = values - old
            for row, product in zip(sums, (values * values, old * d, d * d), strict=True):
                row[where] += product.sum(dim)
        if self.group is not None:
            dist.all_reduce(sums, group=self.group)
        return sums

    def _factors(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """What to multiply w~ and w by; their sum is the new vector."""
        square, along, moved = sums
        cosine = 1 + along
        tangent = (moved - along.square()).clamp_min(0).sqrt()
        limit = torch.full_like(tangent, self.limit)
        for where in self.free:
            limit[where] = torch.pi
        over = torch.atan2(tangent, cosine) > limit
        # on the way: cos w + sin (w~ - cosine w) / tangent
        by_tangent = limit.sin() / tangent.clamp_min(1e-30)
        of_new = torch.where(over, by_tangent, square.clamp_min(1e-24).rsqrt())
        of_old = torch.where(over, limit.cos() - cosine * by_tangent, 0.0)
        # w itself is unit but for rounding, which must not add up from step to step
        old_square = square - 2 * along - moved
        length = of_new.square() * square + of_old.square() * old_square
        length += 2 * of_new * of_old * (old_square + along)
        inverse = length.clamp_min(1e-24).rsqrt()
        return of_new * inverse, of_old * inverse
