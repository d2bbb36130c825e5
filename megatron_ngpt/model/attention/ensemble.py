"""Linear ensemble attention: a learned sum of M softmax maps, of either sign.

Source: the published Linear Ensemble nGPT ``model.py``, which generalises arXiv 2410.05258. Its
norm looks at the future and its shapes do not fit; docs/architectures.md has the differences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.attention.mixed import MixedAttention
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.fused import REFERENCE, Operations


class WeightedSum(nn.Module):
    """Weights ``tanh(weight) * scale``; where they start is in model/spec.py."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(maps))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self) -> Tensor:
        """Fp32 [M]."""
        return self.weight.tanh() * self.scale


class EnsembleAttention(MixedAttention):
    """M maps a head, the same weights in all heads of a block.

    Every map of a key head is a key head of its own for the attention function; the N / K query
    heads that share it lie side by side.
    """

    def __init__(
        self, model: ModelConfig, attend: Attend, layer: int, ops: Operations = REFERENCE
    ) -> None:
        super().__init__(model, attend, layer, ops)
        self.mix = WeightedSum(model.maps)

    def by_map(self, y: Tensor) -> Tensor:
        """[B, T, K M N/K, H] -> [B, T, N, M, H]."""
        by_key = y.unflatten(2, (self.kv_heads, self.maps, -1))
        return by_key.transpose(3, 4).flatten(2, 3)
