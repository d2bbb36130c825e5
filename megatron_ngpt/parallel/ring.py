"""Ring attention: keys and values go round while each rank's queries stay.

While one group's keys are worked on, they are already on their way to the next rank. Each partial
softmax is merged by its log-sum-exp; the backward sends keys and values round once more, with their
gradients one step behind. Source: arXiv 2310.01889; the zigzag order of parallel/zigzag.py balances
causal attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt import keep
from megatron_ngpt.mesh.collectives import PassedOn
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.partial import Tile, add_gradients, add_tile
from megatron_ngpt.parallel.zigzag import tiles


@dataclass(frozen=True)
class RingAttention:
    """Attention over sequences whose tokens are dealt out to a ring of ranks, zigzag.

    Shapes as in ``ops.attention.Attend``, T and S being the rank's own tokens.
    """

    group: dist.ProcessGroup

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None = None, /
    ) -> Tensor:
        """This rank's queries with the keys of all ranks up to their place."""
        out: Tensor = _Ring.apply(q, k, v, scale, self, documents)
        return out

    def around(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None
    ) -> tuple[Tensor, Tensor]:
        """Output in the dtype of q, and fp32 log-sum-exp [B, N, T]; no gradients."""
        out = q.new_zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float32)
        lse = out.new_full((q.shape[0], q.shape[2], q.shape[1]), float("-inf"))
        keys, values, steps = k, v, self.group.size()
        for step in range(steps):
            arriving = PassedOn((keys, values), self.group) if step < steps - 1 else None
            for tile in self.tiles(step, q.shape[1], documents):
                add_tile(tile, q, keys, values, scale, out, lse)
            if arriving is not None:
                keys, values = arriving.wait()
        return out.to(q.dtype), lse

    def tiles(self, step: int, tokens: int, documents: Documents | None) -> list[Tile]:
        """What is to be done with the keys that are here after ``step`` steps round the ring."""
        mine, size = self.group.rank(), self.group.size()
        return list(tiles(mine, (mine - step) % size, size, tokens * size, documents))


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        ring: RingAttention,
        documents: Documents | None,
    ) -> Tensor:
        out, lse = keep.op("attention", lambda: ring.around(q, k, v, scale, documents))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.ring, ctx.documents = scale, ring, documents
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        ring: RingAttention = ctx.ring
        grad, steps, returning = grads[0].contiguous(), ring.group.size(), None
        dq = torch.zeros_like(q, dtype=torch.float32)
        keys, values = k, v
        for step in range(steps):
            arriving = PassedOn((keys, values), ring.group) if step < steps - 1 else None
            dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
            for tile in ring.tiles(step, q.shape[1], ctx.documents):
                add_gradients(tile, (q, keys, values, out, lse), grad, ctx.scale, (dq, dk, dv))
            if returning is not None:
                for total, before in zip((dk, dv), returning.wait(), strict=True):
                    total += before
            returning = PassedOn((dk, dv), ring.group)  # the last step brings them home
            if arriving is not None:
                keys, values = arriving.wait()
        assert returning is not None
        dk, dv = returning.wait()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None
