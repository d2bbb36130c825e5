"""The three operations that make a transformer normalized: unit, residual step, scale.

Source: arXiv 2410.01131, sections 2.2 to 2.5; NVIDIA/ngpt ``model.py`` (commit ed19eb2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def unit(x: Tensor, dim: int = -1, eps: float = 0.0) -> Tensor:
    """Scale vectors along ``dim`` to length 1; same shape and dtype, accumulated in fp32.

    A zero vector stays zero. With eps, length l becomes l / (l + eps).
    """
    x32 = x.float()
    return (x32 / (length(x32, dim) + eps)).to(x.dtype)


def residual_step(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """Move the hidden state towards a block's output along the sphere (eq. 10 and 11).

    ``unit(h + |alpha| (unit(branch) - h))`` with h itself brought back to unit length first, as in
    the reference code: exact arithmetic would not need it, bf16 does. All of it in fp32.

    Args:
        h: hidden state [..., D].
        branch: output of attention or MLP, any length [..., D].
        alpha: step size per dimension, fp32 [D], or one for all; its absolute value counts.
        eps: of the branch's normalisation, see :func:`unit`.
    """
    stepped: Tensor = _ResidualStep.apply(h, branch, alpha, eps)
    return stepped


class _ResidualStep(torch.autograd.Function):
    """Keeps its inputs for the backward and computes the rest again: 2 D values a token, not 8 D.

    With unit vectors a, b of h and branch: s = a + |alpha| (b - a), and the result is unit(s).
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, branch: Tensor, alpha: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(h, branch, alpha)
        ctx.eps = eps
        s = torch.lerp(unit(h.float()), unit(branch.float(), eps=eps), alpha.abs())
        return unit(s).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        h, branch, alpha = ctx.saved_tensors
        length_h, length_branch = length(h.float()), length(branch.float())
        a, b, step = h / length_h, branch / (length_branch + ctx.eps), alpha.abs()
        s = torch.lerp(a, b, step)
        length_s = length(s)
        grad_s = unit_backward(grad.float(), s.div_(length_s), length_s)
        grad_alpha = (torch.sub(b, a) * grad_s).flatten(0, -2).sum(0) * alpha.sign()
        grad_b = grad_s * step
        grad_branch = unit_backward(grad_b, b, length_branch, ctx.eps)
        grad_h = unit_backward(grad_s.sub_(grad_b), a, length_h)
        return grad_h.to(h.dtype), grad_branch.to(branch.dtype), grad_alpha, None


def length(x32: Tensor, dim: int = -1) -> Tensor:
    """Lengths of vectors along ``dim``, which is kept; not below 1e-12, to divide by."""
    return torch.linalg.vector_norm(x32, dim=dim, keepdim=True).clamp_min(1e-12)


def unit_backward(grad: Tensor, u: Tensor, length: Tensor, eps: float = 0.0) -> Tensor:
    """Gradient of x from the gradient of ``u = x / (length + eps)``, [..., D] in fp32.

    (g - u (u . g)) / length without eps: what lies along the vector changes nothing.
    """
    along = (u * grad).sum(-1, keepdim=True)
    if eps:
        along = along / length * (length + eps)
    return torch.addcmul(grad, u, along, value=-1).div_(length + eps)


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
