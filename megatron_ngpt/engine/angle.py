"""The projection with a cap on how far a step turns a vector, still with one all-reduce.

With w the unit vector before the step, w + d after it and t the cap, the tangent part of d is
u = d - (w . d) w and the angle atan2(|u|, 1 + w . d). A vector that turned further than t becomes
cos(t) w + sin(t) u / |u|, on the geodesic at angle t; another one is scaled to length 1.
|d|^2, w . d and |w + d|^2 tell all of it; each rank adds up the parts of its pieces.
|w|^2 - (w . (w + d))^2 would be the same as |u|^2 and lose its digits to cancellation.

Source: arXiv 2608.01284v2, where the cap is a function of time; see
:func:`megatron_ngpt.engine.schedule.angle_cap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.projection import Projection


class CappedProjection(Projection):
    """A projection that knows the vectors before the step.

    Args:
        fragments: as of :class:`Projection`; matrices of the group "embedding" are not capped.
        group: as of :class:`Projection`.
        cap: largest angle, radians; may be changed between steps.
    """

    def __init__(
        self, fragments: Sequence[Fragment], group: dist.ProcessGroup | None, cap: float
    ) -> None:
        self.free: list[bool] = []
        self.cap = cap
        super().__init__(fragments, group)
        self.before: list[Tensor] = []
        self.uncapped = torch.tensor(self.free, device=self.squares.device)
        self.sums = torch.zeros(3, self.vectors, device=self.squares.device)

    def _add(self, fragment: Fragment, norm_dim: int) -> None:
        super()._add(fragment, norm_dim)
        free = fragment.spec.group == "embedding"
        self.free += [free] * (self.vectors - len(self.free))

    def remember(self) -> None:
        """Keep the vectors as they are, before a step."""
        if not self.before:
            self.before = [torch.empty_like(values) for values, _, _ in self.pieces]
        for old, (values, _, _) in zip(self.before, self.pieces, strict=True):
            old.copy_(values)

    @torch.no_grad()
    def __call__(self) -> None:
        """Bring every vector to length 1, at most so far from where it was; collective, 12 bytes
        per vector."""
        if not self.vectors:
            return
        new, old = self._coefficients()
        for before, (values, dim, where) in zip(self.before, self.pieces, strict=True):
            values.mul_(new[where].unsqueeze(dim))
            values.addcmul_(before, old[where].unsqueeze(dim))

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        """What to multiply the vectors after and before the step by, to add them up."""
        self.sums.zero_()
        for before, (values, dim, where) in zip(self.before, self.pieces, strict=True):
            moved = values - before
            self.sums[0, where] += moved.square().sum(dim)
            self.sums[1, where] += (before * moved).sum(dim)
            self.sums[2, where] += values.square().sum(dim)
        if self.group is not None:
            dist.all_reduce(self.sums, group=self.group)
        moved, along, length = self.sums.double().clone()  # squared but for w . d
        side = (moved - along.square()).clamp_min(0).sqrt()
        capped = (torch.atan2(side, 1 + along) > self.cap) & ~self.uncapped
        new = torch.where(capped, math.sin(self.cap) / side.clamp_min(1e-30), 1.0)
        old = torch.where(capped, math.cos(self.cap) - new * (1 + along), 0.0)
        # as w is not exactly of length 1, neither is the sum
        was = length - 2 * along - moved
        found = new**2 * length + 2 * new * old * (was + along) + old**2 * was
        inverse = found.clamp_min(1e-24).rsqrt()
        return (new * inverse).float(), (old * inverse).float()
