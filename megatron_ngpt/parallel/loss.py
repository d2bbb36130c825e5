"""Cross-entropy of logits whose vocabulary is split over ranks, never gathered."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.config import IGNORED


def vocab_parallel_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    first: int,
    rows: int,
    group: dist.ProcessGroup,
    each: bool = False,
) -> Tensor:
    """Mean negative log-likelihood in nats, the same value on every rank.

    Communicates three floats per token: the largest logit, the sum of exponentials and the target's
    logit.

    Args:
        logits: this rank's columns [B, T, V / tp], of which the first ``rows`` are token ids and
            the rest padding that takes no part.
        targets: global token ids [B, T]; one that is ``IGNORED`` adds nothing but counts in the
            mean.
        first: token id of the first column.
        rows: token ids among the columns; may be 0.
        group: the ranks that hold the other columns.
        each: return what ``ops.loss.each_token`` does, without gradients, [2, B, T].
    """
    flat = logits.flatten(0, -2).float()
    if each:
        sums = _sums(flat, targets.flatten(), first, rows, group)
        losses = (sums.total.log() + sums.largest - sums.target).where(
            targets.flatten() != IGNORED, 0.0
        )
        hits = (sums.target >= sums.largest).float()
        return torch.stack((losses, hits)).view(2, *targets.shape)
    loss: Tensor = _CrossEntropy.apply(flat, targets.flatten(), first, rows, group)
    return loss


class _Sums(NamedTuple):
    """What all ranks know of every token [n], and what this one keeps of its own columns."""

    largest: Tensor
    total: Tensor
    """Sum of exp(logit - largest)."""
    target: Tensor
    """The target's logit."""
    exponentials: Tensor
    """[n, V / tp], 0 in padding."""
    column: Tensor
    here: Tensor
    """Whether the target is among this rank's columns, and in which."""


def _sums(
    logits: Tensor, targets: Tensor, first: int, rows: int, group: dist.ProcessGroup
) -> _Sums:
    """Collective: the softmax of logits [n, V / tp] over all ranks."""
    real = logits[:, :rows]
    largest = real.amax(-1) if rows else logits.new_full((len(logits),), float("-inf"))
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    exponentials = torch.zeros_like(logits)
    torch.exp(real - largest[:, None], out=exponentials[:, :rows])
    here = (targets >= first) & (targets < first + rows)
    column = (targets - first).where(here, 0)
    own = logits.gather(1, column[:, None])[:, 0].where(here, 0.0)
    total = torch.stack((exponentials.sum(-1), own))
    dist.all_reduce(total, group=group)
    return _Sums(largest, total[0], total[1], exponentials, column, here)


class _CrossEntropy(torch.autograd.Function):
    """Saves the local softmax; its backward needs no communication."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, first: int, rows: int, group: dist.ProcessGroup
    ) -> Tensor:
        sums = _sums(logits, targets, first, rows, group)
        counted = targets != IGNORED
        softmax = sums.exponentials.div_(sums.total[:, None]).mul_(counted[:, None])
        ctx.save_for_backward(softmax, sums.column, sums.here)
        return (sums.total.log() + sums.largest - sums.target).where(counted, 0.0).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax, column, here = ctx.saved_tensors
        gradient = softmax.scatter_add(1, column[:, None], -here[:, None].to(softmax.dtype))
        return gradient * (grads[0] / len(softmax)), None, None, None, None
