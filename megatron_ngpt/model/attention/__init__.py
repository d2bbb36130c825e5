"""The kinds of attention, one file each, all called alike."""

from __future__ import annotations

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.attention.cache import FirstValues, KeyValueCache, side_by_side
from megatron_ngpt.model.attention.differential import DifferentialAttention
from megatron_ngpt.model.attention.ensemble import EnsembleAttention
from megatron_ngpt.model.attention.standard import Attention, rope_scaling
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.fused import REFERENCE, Operations

__all__ = [
    "Attention",
    "FirstValues",
    "KeyValueCache",
    "build_attention",
    "rope_scaling",
    "side_by_side",
]

_KINDS = {
    "standard": Attention,
    "differential": DifferentialAttention,
    "ensemble": EnsembleAttention,
}


def build_attention(
    model: ModelConfig, attend: Attend, layer: int, ops: Operations = REFERENCE
) -> Attention:
    """The attention of block ``layer``, of the kind that ``model.attention`` names."""
    return _KINDS[model.attention](model, attend, layer, ops)
