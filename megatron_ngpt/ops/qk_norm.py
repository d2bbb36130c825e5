"""Rotary embedding and normalisation of queries and keys in one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.ops.hypersphere import length, unit, unit_backward
from megatron_ngpt.ops.rope import Style, inverse, rotate


def rotary_qk_norm(
    x: Tensor, table: Tensor, scale: Tensor | None = None, style: Style = "interleaved"
) -> Tensor:
    """``scale * unit(rotate(x))``: nGPT's queries and keys (arXiv 2410.01131, eq. 15 and 16).

    All of it in fp32; the result has the dtype of x.

    Args:
        x: queries or keys [B, T, heads, head_dim].
        table: of their positions, from :func:`megatron_ngpt.ops.rope.rotary_table`.
        scale: per head and dimension, fp32 [heads, head_dim]; None leaves unit vectors.
        style: of the rotation.
    """
    made: Tensor = _RotaryQKNorm.apply(x, table, scale, style)
    return made


class _RotaryQKNorm(torch.autograd.Function):
    """Keeps x alone for the backward, not what it is rotated, normalised and scaled to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, scale: Tensor | None, style: Style) -> Tensor:
        ctx.save_for_backward(x, table, scale)
        ctx.style = style
        rotated = unit(rotate(x, table, style))
        return (rotated if scale is None else rotated * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
        x, table, scale = ctx.saved_tensors
        grad, rotated = grad.float(), rotate(x, table, ctx.style)
        lengths = length(rotated)
        rotated = rotated / lengths  # no rotation at all may return x itself
        grad_scale = None
        if scale is not None:
            grad_scale = (grad * rotated).flatten(0, -3).sum(0)
            grad = grad * scale
        # the transpose of a rotation turns back
        grad_x = rotate(unit_backward(grad, rotated, lengths), inverse(table), ctx.style)
        return grad_x.to(x.dtype), None, grad_scale, None
