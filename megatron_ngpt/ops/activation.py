"""What stands between the matrices of a feed-forward, with nGPT's scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.ops.fused import REFERENCE, Operations


def swiglu(
    u: Tensor,
    v: Tensor,
    s_u: Tensor | None = None,
    s_v: Tensor | None = None,
    ops: Operations = REFERENCE,
) -> Tensor:
    """``(s_u u) silu(s_v v)`` in fp32 (arXiv 2002.05202); the result has the dtype of u.

    Args:
        u: [..., F].
        v: the gate [..., F].
        s_u: fp32 [F]; None, for both scales, means 1.
        s_v: fp32 [F].
        ops: who computes it.
    """
    made: Tensor = _SwiGLU.apply(u, v, s_u, s_v, ops)
    return made


class _SwiGLU(torch.autograd.Function):
    """Keeps u and v for the backward, not what becomes of them: 2 F a token, not 5 F."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None, ops: Operations
    ) -> Tensor:
        ctx.save_for_backward(u, v, s_u, s_v)
        ctx.ops = ops
        return ops.swiglu(u, v, s_u, s_v)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, None]:
        return *ctx.ops.swiglu_backward(grad, *ctx.saved_tensors), None


def squared_relu(u: Tensor, s_u: Tensor | None = None, ops: Operations = REFERENCE) -> Tensor:
    """``relu(s_u u)^2`` in fp32 (arXiv 2109.08668); the result has the dtype of u.

    Args:
        u: [..., F].
        s_u: fp32 [F]; None means 1.
        ops: who computes it.
    """
    made: Tensor = _SquaredReLU.apply(u, s_u, ops)
    return made


class _SquaredReLU(torch.autograd.Function):
    """Keeps u alone for the backward."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, s_u: Tensor | None, ops: Operations) -> Tensor:
        ctx.save_for_backward(u, s_u)
        ctx.ops = ops
        return ops.squared_relu(u, s_u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        return *ctx.ops.squared_relu_backward(grad, *ctx.saved_tensors), None
