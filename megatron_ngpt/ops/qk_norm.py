"""Rotary embedding of queries and keys, with nGPT's normalisation in the same operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.rope import Style


def rotary_qk_norm(
    x: Tensor,
    table: Tensor,
    scale: Tensor | None = None,
    style: Style = "interleaved",
    ops: Operations = REFERENCE,
) -> Tensor:
    """``scale * unit(rotate(x))``: nGPT's queries and keys (arXiv 2410.01131, eq. 15 and 16).

    All of it in fp32; the result has the dtype of x.

    Args:
        x: queries or keys [B, T, heads, head_dim].
        table: of their positions, from :func:`megatron_ngpt.ops.rope.rotary_table`.
        scale: per head and dimension, fp32 [heads, head_dim]; None leaves unit vectors.
        style: of the rotation.
        ops: who computes it.
    """
    made: Tensor = _RotaryQKNorm.apply(x, table, scale, style, ops)
    return made


def rotary(
    x: Tensor, table: Tensor, style: Style = "interleaved", ops: Operations = REFERENCE
) -> Tensor:
    """``rotate(x)``: GPT's queries and keys; arguments as in :func:`rotary_qk_norm`."""
    made: Tensor = _Rotary.apply(x, table, style, ops)
    return made


class _RotaryQKNorm(torch.autograd.Function):
    """Keeps x alone for the backward, not what it is rotated, normalised and scaled to."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, scale: Tensor | None, style: Style, ops: Operations
    ) -> Tensor:
        ctx.save_for_backward(x, table, scale)
        ctx.style, ctx.ops = style, ops
        return ops.rotary(x, table, scale, True, style)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        made = ctx.ops.rotary_backward(grad, *ctx.saved_tensors, True, ctx.style)
        return made[0], None, made[1], None, None


class _Rotary(torch.autograd.Function):
    """Linear in x, of which it keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, style: Style, ops: Operations) -> Tensor:
        ctx.save_for_backward(table)
        ctx.style, ctx.ops = style, ops
        return ops.rotary(x, table, None, False, style)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (table,) = ctx.saved_tensors
        made = ctx.ops.rotary_backward(grad, None, table, None, False, ctx.style)
        return made[0], None, None, None
