"""Lengths of vectors and what dividing by them does to gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor, dim: int = -1, eps: float = 0.0) -> Tensor:
    """Scale vectors along ``dim`` to length 1; same shape and dtype, accumulated in fp32.

    A zero vector stays zero. With eps, length l becomes l / (l + eps).
    """
    x32 = x.float()
    return (x32 / (length(x32, dim) + eps)).to(x.dtype)


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
