"""Differential attention: the difference of two softmax maps cancels what both attend to.

Source: arXiv 2410.05258; microsoft/unilm ``Diff-Transformer/multihead_diffattn.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.attention.mixed import MixedAttention
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.fused import REFERENCE, Operations


def lambda_init(layer: int) -> float:
    """Where lambda starts in block ``layer``, 0 being the first (section 2.1, "l - 1" there)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


class Difference(nn.Module):
    """Weights (1, -lambda), ``lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init`` (eq. 2)."""

    def __init__(self, map_dim: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.query_1 = nn.Parameter(torch.zeros(map_dim))
        self.key_1 = nn.Parameter(torch.zeros(map_dim))
        self.query_2 = nn.Parameter(torch.zeros(map_dim))
        self.key_2 = nn.Parameter(torch.zeros(map_dim))

    def forward(self) -> Tensor:
        """Fp32 [2]."""
        first, second = self.query_1 @ self.key_1, self.query_2 @ self.key_2
        balance = first.exp() - second.exp() + self.start
        return torch.stack((torch.ones_like(balance), -balance))


class DifferentialAttention(MixedAttention):
    """Two maps a head, each output normed and times ``1 - lambda_init``.

    Heads lie as in Microsoft's code: query head 2 n + m is map m of head n, and the 2 N query heads
    share the 2 K key heads in order. With grouped queries both maps of a head may thus share a key.
    """

    def __init__(
        self, model: ModelConfig, attend: Attend, layer: int, ops: Operations = REFERENCE
    ) -> None:
        super().__init__(model, attend, layer, ops)
        start = lambda_init(layer)
        self.mix, self.factor = Difference(model.map_dim, start), 1 - start

    def by_map(self, y: Tensor) -> Tensor:
        """[B, T, N M, H] -> [B, T, N, M, H]."""
        return y.unflatten(2, (-1, self.maps))
