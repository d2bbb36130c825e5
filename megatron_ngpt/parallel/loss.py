"""Cross-entropy of logits whose vocabulary is split over ranks, never gathered."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.ops.documents import IGNORED


def vocab_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, first: int, rows: int, group: dist.ProcessGroup
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
    """
    flat = logits.flatten(0, -2).float()
    loss: Tensor = _CrossEntropy.apply(flat, targets.flatten(), first, rows, group)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Saves the local softmax; its backward needs no communication."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, first: int, rows: int, group: dist.ProcessGroup
    ) -> Tensor:
        real = logits[:, :rows]
        largest = real.amax(-1) if rows else logits.new_full((len(logits),), float("-inf"))
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        softmax = torch.zeros_like(logits)
        torch.exp(real - largest[:, None], out=softmax[:, :rows])
        here = (targets >= first) & (targets < first + rows)
        column = (targets - first).where(here, 0)
        own = logits.gather(1, column[:, None])[:, 0].where(here, 0.0)
        sums = torch.stack((softmax.sum(-1), own))
        dist.all_reduce(sums, group=group)
        total, target_logit = sums
        counted = targets != IGNORED
        softmax /= total[:, None]
        softmax *= counted[:, None]
        ctx.save_for_backward(softmax, column, here)
        return (total.log() + largest - target_logit).where(counted, 0.0).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax, column, here = ctx.saved_tensors
        gradient = softmax.scatter_add(1, column[:, None], -here[:, None].to(softmax.dtype))
        return gradient * (grads[0] / len(softmax)), None, None, None, None
