"""The head and its cross-entropy in one operation, some tokens at a time.

Logits are made, used and forgotten chunk by chunk, and the gradient is taken while they are there:
no more than a chunk of them is ever in memory, each is written once, and nothing is computed again
in backward, which only multiplies by the gradient that arrives. Where products are fp32, rows of
the weight are scaled by s_z before them (:class:`_Folded`); elsewhere that would round once more,
and the softmax scales. Shapes: N tokens, D width, V columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_ngpt.config import CHUNK_BYTES, CHUNK_ROWS, IGNORED
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.linear import product_dtype


class Columns:
    """Which token ids the columns of the logits stand for: all, the first being 0."""

    def of(self, targets: Tensor, width: int) -> tuple[Tensor, int]:
        """Column of every target, -1 where it has none here, and how many columns count."""
        return targets.clamp_min(-1), width

    def merged(self, largest: Tensor, total: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Over all columns: largest logits, sums of exp(logit - largest), logits of the targets.

        Args:
            largest: of these columns, [n].
            total: of these columns, [n].
            own: logit of the target, 0 where it has no column here, [n].
        """
        return largest, total, own


class Logits(NamedTuple):
    """How logits come from hidden states, and what is done to compute their loss."""

    weight: Tensor
    """[V, D]; logits are ``scale * (weight h)``."""
    scale: Tensor | None = None
    """fp32 [V]; None for 1."""
    slope: Tensor | None = None
    """What multiplies the gradient on its way through the scale, fp32 [V]; None for the scale."""
    columns: Columns = Columns()
    rows: int = 0
    """Tokens of a chunk; 0 means as many as :data:`CHUNK_BYTES` holds,
    but not fewer than :data:`CHUNK_ROWS`."""
    ops: Operations = REFERENCE


def head_loss(h: Tensor, targets: Tensor, head: Logits, each: bool = False) -> Tensor:
    """Mean negative log-likelihood in nats, fp32.

    Args:
        h: final hidden states [B, T, D].
        targets: next-token ids [B, T]; one that is ``IGNORED`` adds nothing but counts in the mean,
            so that means of equal shares of a batch average to that of the batch.
        head: the rest.
        each: return the loss of every target, and whether no logit is above the target's, instead;
            fp32 [2, B, T] without gradients.
    """
    flat, goals = h.flatten(0, -2), targets.flatten()
    scale = None if head.scale is None else head.scale.expand(len(head.weight))
    if each or not torch.is_grad_enabled():
        losses, hits = _chunks(flat, goals, head).losses()
        return torch.stack((losses, hits)).view(2, *targets.shape) if each else losses.mean()
    loss: Tensor = _HeadLoss.apply(flat, head.weight, scale, goals, head)
    return loss


class _HeadLoss(torch.autograd.Function):
    """Keeps the gradients themselves: D values a token, and those of the weight."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, scale: Tensor | None, targets: Tensor, head: Logits
    ) -> Tensor:
        chunks = _chunks(h, targets, head._replace(weight=weight, scale=scale))
        losses, *grads = chunks.gradients(*ctx.needs_input_grad[:2])
        ctx.save_for_backward(*grads)
        return losses.mean()

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        # out of place: a zero-bubble schedule comes twice, for h and for the weight
        by_one = grad.device.type == "cpu" and float(grad) == 1
        made = [
            None if x is None or not wanted else x if by_one else (x * grad).to(x.dtype)
            for x, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        return made[0], made[1], made[2], None, None


def _chunks(h: Tensor, targets: Tensor, head: Logits) -> _Chunks:
    on_cpu = h.device.type == "cpu"  # elsewhere the softmax with its scale is one kernel
    kind = _Folded if on_cpu and product_dtype(h) == torch.float32 else _Chunks
    return kind(h, targets, head)


class _Chunks:
    """All tokens [N, D], a chunk of them at a time."""

    def __init__(self, h: Tensor, targets: Tensor, head: Logits) -> None:
        self.h, self.head, self.ops = h, head, head.ops
        self.dtype = product_dtype(h)
        self.weight = head.weight.to(h.dtype).to(self.dtype)  # a master as its copy would be
        self.scale = None if head.scale is None else head.scale.float().contiguous()
        self.column, self.real = head.columns.of(targets, len(self.weight))
        self.counted = targets != IGNORED
        per_token = 4 * max(1, len(self.weight))
        device = "cpu" if h.device.type == "cpu" else "cuda"
        rows = head.rows or max(CHUNK_ROWS[device], CHUNK_BYTES[device] // per_token)
        self.rows = [slice(n, n + rows) for n in range(0, len(h), rows)]
        self.buffer = h.new_empty(min(rows, len(h)), len(self.weight), dtype=self.dtype)

    @torch.no_grad()
    def losses(self) -> tuple[Tensor, Tensor]:
        """Loss of every token, and 1 where no logit is above the target's; [N] both."""
        losses, hits = self._per_token(), self._per_token()
        for rows in self.rows:
            largest, total, own = self._sums(rows, self._logits(rows))
            losses[rows] = (total.log() + largest - own).where(self.counted[rows], 0.0)
            hits[rows] = (own >= largest).float()
        return losses, hits

    def gradients(
        self, of_h: bool, of_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Losses [N], and the gradients of their mean: of h, the weight and the scale."""
        losses = self._per_token()
        weights = self.counted.float() / len(self.h)
        grad_h = torch.empty_like(self.h) if of_h else None
        grad_weight = torch.zeros_like(self.weight, dtype=torch.float32) if of_weight else None
        grad_scale = None if self.scale is None else torch.zeros_like(self.scale)
        slope = self.scale if self.head.slope is None else self.head.slope
        for rows in self.rows:
            u = self._logits(rows)
            largest, total, own = self._sums(rows, u)
            losses[rows] = (total.log() + largest - own).where(self.counted[rows], 0.0)
            sums, column = (largest, total), self.column[rows]
            part = self.ops.softmax_gradient(
                u, self.scale, slope, sums, weights[rows], column, self.real
            )
            if grad_scale is not None and part is not None:
                grad_scale += part
            self._back(rows, u.to(self.dtype), grad_h, grad_weight)
        if grad_weight is not None:
            grad_weight = grad_weight.to(self.h.dtype).to(self.head.weight.dtype)
        return losses, grad_h, grad_weight, grad_scale

    def _per_token(self) -> Tensor:
        return self.h.new_empty(len(self.h), dtype=torch.float32)

    def _logits(self, rows: slice) -> Tensor:
        """Before their scale, fp32 [n, V]."""
        h = self.h[rows].to(self.dtype)
        return torch.mm(h, self.weight.T, out=self.buffer[: len(h)]).float()

    def _sums(self, rows: slice, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Largest logit, sum of exp(logit - largest) and the target's logit, over all columns."""
        column = self.column[rows]
        here, place = column >= 0, column.clamp_min(0)
        own = u.gather(1, place[:, None])[:, 0]
        own = own if self.scale is None else own * self.scale[place]
        largest, total = self.ops.softmax_sums(u, self.scale, self.real)
        return self.head.columns.merged(largest, total, own.where(here, 0.0))

    def _back(
        self, rows: slice, grad: Tensor, grad_h: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        """From the gradient of the logits to those of h and the weight."""
        if grad_h is not None:
            grad_h[rows] = grad @ self.weight
        if grad_weight is not None:
            h = self.h[rows].to(self.dtype)
            if self.dtype == torch.float32:
                grad_weight.addmm_(grad.T, h)
            else:
                grad_weight += grad.T @ h


class _Folded(_Chunks):
    """With fp32 products: ``(scale W) h`` for ``scale (W h)``, and one exponential for a logit.

    The softmax of a row is its exponentials e times a factor f, and what is a row's can wait until
    after a product over columns: the gradient of h is ``f (e - 1/f [target]) W'``, W' the scaled
    rows, that of W is ``slope (e - 1/f [target])^T (f h)``. What the latter is without its slope,
    times W, is the gradient of the scale.
    """

    def __init__(self, h: Tensor, targets: Tensor, head: Logits) -> None:
        super().__init__(h, targets, head)
        self.rows_given, self.own_scale = self.weight, self.scale
        self.scale = None
        if self.own_scale is not None:
            self.weight = self.weight * self.own_scale[:, None]

    def gradients(
        self, of_h: bool, of_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """As the other's."""
        losses = self._per_token()
        weights = self.counted.float() / len(self.h)
        grad_h = torch.empty_like(self.h) if of_h else None
        summed = of_weight or self.own_scale is not None
        grad_weight = torch.empty_like(self.weight) if summed else None
        back = self._back_to_h()
        for rows in self.rows:
            e = self._logits(rows)
            losses[rows], factor = self._softmax(rows, e)
            factor = (factor * weights[rows])[:, None]
            if grad_h is not None:
                grad_h[rows] = torch.mm(e, back).mul_(factor)
            if grad_weight is not None:
                h = self.h[rows].to(self.dtype) * factor
                beta = 0 if rows.start == 0 else 1
                torch.addmm(grad_weight, e.T, h, beta=beta, out=grad_weight)
        grad_scale = self._scaled_back(grad_weight)
        if grad_weight is not None:
            grad_weight = grad_weight.to(self.h.dtype).to(self.head.weight.dtype)
        return losses, grad_h, grad_weight if of_weight else None, grad_scale

    def _softmax(self, rows: slice, u: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [n], and the factor [n] that makes a softmax of what u, in place, becomes."""
        column = self.column[rows]
        here, place = column >= 0, column.clamp_min(0)[:, None]
        own = u.gather(1, place)[:, 0].where(here, 0.0)
        mine, total = self.ops.exponentials(u, self.real)
        largest, total, own = self.head.columns.merged(mine, total, own)
        # columns of which all are that small leave the gradient to those of other ranks
        factor = (mine - largest).exp().clamp_min(1e-30) / total
        u.scatter_add_(1, place, -(1 / factor).where(here, 0.0)[:, None])
        return (total.log() + largest - own).where(self.counted[rows], 0.0), factor

    def _back_to_h(self) -> Tensor:
        """What the gradient of the logits is multiplied by."""
        slope = self.head.slope
        return self.weight if slope is None else self.rows_given * slope[:, None]

    def _scaled_back(self, grad_weight: Tensor | None) -> Tensor | None:
        """The gradient of the scale; that of the weight gets its slope, in place."""
        if grad_weight is None or self.own_scale is None:
            return None
        slope = self.own_scale if self.head.slope is None else self.head.slope
        return self.ops.scale_rows(grad_weight, self.rows_given, slope.float())
