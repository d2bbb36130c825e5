"""RMSNorm of the GPT baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megatron_ngpt.ops.hypersphere import Scale


class RMSNorm(nn.Module):
    """``x / rms(x) * gain`` over the last dimension, in fp32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = Scale(width, init=1.0, scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as ``x`` [..., width]."""
        normalised: Tensor = _RMSNorm.apply(x, self.gain(), self.eps)
        return normalised


class _RMSNorm(torch.autograd.Function):
    """Keeps x for the backward, not its normalised copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.eps = eps
        normalised, _ = _normalise(x, eps)
        return (normalised * gain).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain = ctx.saved_tensors
        normalised, by_rms = _normalise(x, ctx.eps)
        grad_gain = (grad * normalised).flatten(0, -2).sum(0)
        grad = grad * gain
        along = (grad * normalised).mean(-1, keepdim=True)
        grad_x = torch.addcmul(grad, normalised, along, value=-1).mul_(by_rms)
        return grad_x.to(x.dtype), grad_gain, None


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """fp32 x / rms(x), and 1 / rms(x)."""
    x32 = x.float()
    by_rms = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
    return x32 * by_rms, by_rms
