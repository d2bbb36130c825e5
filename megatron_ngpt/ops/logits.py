"""Logits whose gradient does not grow with their scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def preconditioned(u: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
    """``u * scale``, with dL/du = scale / mean * dL/dz in place of scale * dL/dz.

    The scale's own gradient is the usual one. Source: arXiv 2608.01284v2, with q = 1.

    Args:
        u: cosines, fp32 [..., V].
        scale: s_z, fp32 [V], or one for all.
        mean: of s_z over the whole vocabulary, a scalar.
    """
    scaled: Tensor = _Preconditioned.apply(u, scale, mean)
    return scaled


class _Preconditioned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
        ctx.save_for_backward(u, scale, mean)
        return u * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        u, scale, mean = ctx.saved_tensors
        return grad * (scale / mean), (grad * u).flatten(0, -2).sum(0), None
