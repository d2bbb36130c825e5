"""Cross-entropy of logits whose vocabulary is split over ranks, never gathered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.ops.loss import Columns


@dataclass(frozen=True)
class SplitColumns(Columns):
    """The columns of one tensor-parallel rank.

    Communicates three floats per token: the largest logit, the sum of exponentials and the target's
    logit. The loss is then the same on every rank, and the gradient needs no communication.
    """

    first: int
    """Token id of the first column."""

    rows: int
    """Token ids among the columns, which may be 0; the rest is padding that takes no part."""

    group: dist.ProcessGroup
    """The ranks that hold the other columns."""

    def of(self, targets: Tensor, width: int) -> tuple[Tensor, int]:
        """Column of every target, -1 where it is another rank's."""
        here = (targets >= self.first) & (targets < self.first + self.rows)
        return (targets - self.first).where(here, -1), self.rows

    def merged(self, largest: Tensor, total: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Collective; sums of exponentials are brought to the largest logit of all ranks."""
        most = largest.clone()
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        total = total * (largest - most).exp() if self.rows else torch.zeros_like(total)
        sums = torch.stack((total, own))
        dist.all_reduce(sums, group=self.group)
        return most, sums[0], sums[1]
