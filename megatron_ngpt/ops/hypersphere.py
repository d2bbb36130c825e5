"""The three operations that make a transformer normalized: unit, residual step, scale.

Source: arXiv 2410.01131, sections 2.2 to 2.5; NVIDIA/ngpt ``model.py`` (commit ed19eb2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.lengths import unit

__all__ = ["Scale", "residual_step", "unit"]


def residual_step(
    h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0, ops: Operations = REFERENCE
) -> Tensor:
    """Move the hidden state towards a block's output along the sphere (eq. 10 and 11).

    ``unit(h + |alpha| (unit(branch) - h))`` with h itself brought back to unit length first, as in
    the reference code: exact arithmetic would not need it, bf16 does. All of it in fp32.

    Args:
        h: hidden state [..., D].
        branch: output of attention or MLP, any length [..., D].
        alpha: step size per dimension, fp32 [D], or one for all; its absolute value counts.
        eps: of the branch's normalisation, see :func:`unit`.
        ops: who computes it.
    """
    stepped: Tensor = _ResidualStep.apply(h, branch, alpha, eps, ops)
    return stepped


class _ResidualStep(torch.autograd.Function):
    """Keeps its inputs and computes the rest again: 2 D values a token, not 8 D."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, branch: Tensor, alpha: Tensor, eps: float, ops: Operations
    ) -> Tensor:
        ctx.save_for_backward(h, branch, alpha)
        ctx.eps, ctx.ops = eps, ops
        return ops.residual_step(h, branch, alpha, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        made = ctx.ops.residual_step_backward(grad, *ctx.saved_tensors, ctx.eps)
        return *made, None, None


class Scale(nn.Module):
    """Learned scaling vector, kept in fp32, whose effective value is ``value * init / scale``.

    Storing it at ``scale`` sets how far one Adam step of size lr moves the effective value
    (section 2.5). A shared one stores one number, a fixed one nothing.
    """

    def __init__(
        self, size: int, init: float, scale: float, shared: bool = False, learned: bool = True
    ) -> None:
        super().__init__()
        self.factor, self.shared, self.fixed = init / scale, shared, None if learned else init
        stored = torch.full((1 if shared else size,), scale)
        self.value = nn.Parameter(stored) if learned else None

    def forward(self) -> Tensor:
        """Effective value, fp32 [size], [1] when shared, [] when fixed."""
        if self.value is None:
            return torch.tensor(self.fixed)
        return self.value * self.factor
