"""The three operations that make a transformer normalized: unit, residual step, scale.

Source: arXiv 2410.01131, sections 2.2 to 2.5; NVIDIA/ngpt ``model.py`` (commit ed19eb2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unit(x: Tensor, dim: int = -1, eps: float = 0.0) -> Tensor:
    """Scale vectors along ``dim`` to length 1; same shape and dtype, accumulated in fp32.

    A zero vector stays zero. With eps, length l becomes l / (l + eps).
    """
    x32 = x.float()
    length = _length(x32, dim)
    return (x32 / (length + eps if eps else length)).to(x.dtype)


def _length(x32: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(x32, dim=dim, keepdim=True).clamp_min(1e-12)


def residual_step(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """Move the hidden state towards a block's output along the sphere (eq. 10 and 11).

    ``unit(h + |alpha| (unit(branch) - h))`` with h itself brought back to unit length first, as in
    the reference code: exact arithmetic would not need it, bf16 does. All of it in fp32.

    Args:
        h: hidden state [..., D].
        branch: output of attention or MLP, any length [..., D].
        alpha: step size per dimension, fp32 [D]; its absolute value counts.
        eps: of the branch's normalisation, see :func:`unit`.
    """
    here, there = unit(h.float()), unit(branch.float(), eps=eps)
    return unit(here + alpha.abs() * (there - here)).to(h.dtype)


class Scale(nn.Module):
    """Learned scaling vector, kept in fp32, whose effective value is ``value * init / scale``.

    Storing it at ``scale`` sets how far one Adam step of size lr moves the effective value
    (section 2.5).
    """

    def __init__(self, size: int, init: float, scale: float) -> None:
        super().__init__()
        self.factor = init / scale
        self.value = nn.Parameter(torch.full((size,), scale))

    def forward(self) -> Tensor:
        """Effective value, fp32 [size]."""
        return self.value * self.factor
