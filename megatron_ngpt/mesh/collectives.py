"""Collectives that autograd can go through, each with its group as an argument.

Sequence sharding (arXiv 2205.05198): between blocks a rank holds T / tp of the tokens. Shapes:
x [B, T, ...] with the tokens in dimension 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt import keep


def gather_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, T / tp, ...] of every rank -> [B, T, ...] on all; the gradients are summed and split."""
    gathered: Tensor = _GatherTokens.apply(x, group)
    return gathered


def sum_and_split_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Partial sums [B, T, ...] of every rank -> their sum, [B, T / tp, ...] on each."""
    split: Tensor = _SumAndSplitTokens.apply(x, group)
    return split


def sum_gradient(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The same values, with the gradients of all ranks added up.

    For what every rank holds alike but uses on its own tokens.
    """
    same: Tensor = _SumGradient.apply(x, group)
    return same


def exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[n, ...] with a piece for every rank -> [n, ...] with a piece from every rank."""
    exchanged: Tensor = _Exchange.apply(x, group)
    return exchanged


def all_gather_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Without autograd: [B, T / n, ...] -> [B, T, ...] in rank order."""
    mine = x.transpose(0, 1).contiguous()  # the collective concatenates dimension 0
    whole = mine.new_empty(mine.shape[0] * group.size(), *mine.shape[1:])
    dist.all_gather_into_tensor(whole, mine, group=group)
    # one copy here, or each linear layer that reads this makes and keeps its own
    return whole.transpose(0, 1).contiguous()


def reduce_scatter_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Without autograd: the sum over ranks of [B, T, ...], each rank keeping its T / n tokens."""
    whole = x.transpose(0, 1).contiguous()
    mine = whole.new_empty(whole.shape[0] // group.size(), *whole.shape[1:])
    dist.reduce_scatter_tensor(mine, whole, group=group)
    return mine.transpose(0, 1).contiguous()  # a pipeline sends nothing else


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered: Tensor = keep.op("all_gather", lambda: all_gather_tokens(x, group))
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter_tokens(grads[0], ctx.group), None


class _SumAndSplitTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        split: Tensor = keep.op("reduce_scatter", lambda: reduce_scatter_tokens(x, group))
        return split

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return all_gather_tokens(grads[0], ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        exchanged: Tensor = keep.op("all_to_all", lambda: _all_to_all(x, group))
        return exchanged

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.group), None


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    mine = x.contiguous()
    theirs = torch.empty_like(mine)
    dist.all_to_all_single(theirs, mine, group=group)
    return theirs


class PassedOn:
    """Tensors on their way to the next rank of a ring while the previous rank's are arriving.

    Sending begins at once; what is computed until :meth:`wait` overlaps with it.

    Args:
        tensors: sent, and of the shapes that arrive.
        group: the ring, at least two ranks.
    """

    def __init__(self, tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        self.sent = [tensor.contiguous() for tensor in tensors]  # alive until they have left
        self.received = [torch.empty_like(tensor) for tensor in self.sent]
        place, size = group.rank(), group.size()
        after, before = (
            dist.get_global_rank(group, (place + step) % size) for step in (1, size - 1)
        )
        self.works = dist.batch_isend_irecv(
            [
                dist.P2POp(kind, tensor, peer, group, tag)
                for kind, peer, moved in (
                    (dist.isend, after, self.sent),
                    (dist.irecv, before, self.received),
                )
                for tag, tensor in enumerate(moved)
            ]
        )

    def wait(self) -> list[Tensor]:
        """The previous rank's tensors."""
        for work in self.works:
            work.wait()
        return self.received


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
