"""What stands between the matrices of a feed-forward, with nGPT's scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def swiglu(u: Tensor, v: Tensor, s_u: Tensor | None = None, s_v: Tensor | None = None) -> Tensor:
    """``(s_u u) silu(s_v v)`` in fp32 (arXiv 2002.05202); the result has the dtype of u.

    Args:
        u: [..., F].
        v: the gate [..., F].
        s_u: fp32 [F]; None, for both scales, means 1.
        s_v: fp32 [F].
    """
    made: Tensor = _SwiGLU.apply(u, v, s_u, s_v)
    return made


class _SwiGLU(torch.autograd.Function):
    """Keeps u and v for the backward, not their scaled and activated values: 2 F a token, not 5 F.

    silu(x) = x sigmoid(x), whose derivative is sigmoid(x) (1 + x (1 - sigmoid(x))).
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, v, s_u, s_v)
        return (_scaled(u, s_u) * torch.nn.functional.silu(_scaled(v, s_v))).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        u, v, s_u, s_v = ctx.saved_tensors
        grad, gate = grad.float(), _scaled(v, s_v)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        del gate  # few of these fp32 tensors at a time
        slope = (1 - sigmoid).mul_(silu).add_(sigmoid)
        del sigmoid
        grad_u, grad_v = silu.mul_(grad), slope.mul_(grad).mul_(_scaled(u, s_u))
        return (
            _scaled(grad_u, s_u).to(u.dtype),
            _scaled(grad_v, s_v).to(v.dtype),
            None if s_u is None else (grad_u * u).flatten(0, -2).sum(0),
            None if s_v is None else (grad_v * v).flatten(0, -2).sum(0),
        )


def squared_relu(u: Tensor, s_u: Tensor | None = None) -> Tensor:
    """``relu(s_u u)^2`` in fp32 (arXiv 2109.08668); the result has the dtype of u.

    Args:
        u: [..., F].
        s_u: fp32 [F]; None means 1.
    """
    made: Tensor = _SquaredReLU.apply(u, s_u)
    return made


class _SquaredReLU(torch.autograd.Function):
    """Keeps u alone for the backward."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, s_u: Tensor | None) -> Tensor:
        ctx.save_for_backward(u, s_u)
        return _scaled(u, s_u).relu().square().to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        u, s_u = ctx.saved_tensors
        grad = _scaled(u, s_u).relu().mul_(2).mul_(grad)
        grad_s = None if s_u is None else (grad * u).flatten(0, -2).sum(0)
        return _scaled(grad, s_u).to(u.dtype), grad_s


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x.float() if scale is None else x * scale
