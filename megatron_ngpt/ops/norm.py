"""RMSNorm of the GPT baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.hypersphere import Scale


class RMSNorm(nn.Module):
    """``x / rms(x) * gain`` over the last dimension, in fp32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float, ops: Operations = REFERENCE) -> None:
        super().__init__()
        self.eps, self.ops = eps, ops
        self.gain = Scale(width, init=1.0, scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x`` [..., width]."""
        return self.beside(x)[1]

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x itself and its normalised copy, whose two gradients become one in a single pass."""
        both: tuple[Tensor, Tensor] = _RMSNorm.apply(x, self.gain(), self.eps, self.ops)
        return both


class _RMSNorm(torch.autograd.Function):
    """Keeps x for the backward, not its normalised copy."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, eps: float, ops: Operations
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, gain)
        ctx.eps, ctx.ops = eps, ops
        ctx.set_materialize_grads(False)
        return x.view_as(x), ops.rms_norm(x, gain, eps)

    @staticmethod
    def backward(
        ctx: Any, beside: Tensor | None, grad: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad is None:
            return beside, None, None, None
        made = ctx.ops.rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps, beside)
        return *made, None, None
