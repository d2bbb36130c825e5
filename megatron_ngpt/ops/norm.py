"""RMSNorm of the GPT baseline."""

from __future__ import annotations

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
        x32 = x.float()
        mean_square = x32.pow(2).mean(dim=-1, keepdim=True)
        return (x32 * torch.rsqrt(mean_square + self.eps) * self.gain()).to(x.dtype)
