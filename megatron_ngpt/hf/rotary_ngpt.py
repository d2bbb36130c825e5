"""Rotary position embedding of nGPT for Hugging Face transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration_ngpt import NGPTConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn pairs of the first dimensions of every head; fp32.

    Args:
        x: [B, N, T, J].
        cos, sin: [B, T, R / 2], R the number of dimensions that turn.
        interleaved: pairs are (2i, 2i + 1), not (i, i + R / 2).
    """
    turning, still = x.float().tensor_split([2 * cos.shape[-1]], dim=-1)
    shape, dim = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    one, two = turning.unflatten(-1, shape).unbind(dim)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.stack((one * cos - two * sin, one * sin + two * cos), dim).flatten(-2)
    return torch.cat((turned, still), dim=-1) if still.shape[-1] else turned


def for_both(values: Tensor, turning: int, interleaved: bool) -> Tensor:
    """One value for each pair of ``turning`` dimensions as one for each dimension; the rest as it
    is: [..., turning / 2 + rest] -> [..., turning + rest]."""
    if not turning:
        return values
    pairs, still = values.tensor_split([turning // 2], dim=-1)
    both = pairs.repeat_interleave(2, -1) if interleaved else torch.cat((pairs, pairs), -1)
    return torch.cat((both, still), dim=-1)


def rotary_parameters(config: NGPTConfig) -> tuple[Tensor, float]:
    """Frequencies, and the factor on queries and keys that some scaled variants ask for."""
    plain = NGPTRotaryEmbedding.compute_default_rope_parameters
    if config.rope_frequencies:
        return plain(config)
    fill = ROPE_INIT_FUNCTIONS.get(config.rope_parameters["rope_type"], plain)
    found: tuple[Tensor, float] = fill(_of_maps(config))
    return found


def _of_maps(config: NGPTConfig) -> NGPTConfig:
    """A configuration whose heads are as wide as queries and keys, for transformers' functions."""
    found = copy.copy(config)
    found.head_dim = config.map_dim
    return found


class NGPTRotaryEmbedding(nn.Module):
    """Cosine and sine of every position's angles; scaled variants are transformers' own.

    A factor on queries and keys would be normalised away: attention applies its square to logits.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        self.config = _of_maps(config)  # variants that change with the length read it again
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = rotary_parameters(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: NGPTConfig, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, float]:
        """Frequencies theta^(-2i / R) or those given one by one, and the factor 1."""
        rope = config.rope_parameters
        if config.rope_frequencies:  # linear scaling divides them, others do not take them
            return torch.tensor(config.rope_frequencies) / rope.get("factor", 1.0), 1.0
        turning = int(config.map_dim * rope.get("partial_rotary_factor", 1.0))
        pairs = torch.arange(0, turning, 2, dtype=torch.float32)
        return float(rope["rope_theta"]) ** (-pairs / turning), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, T] -> cosines and sines [B, T, R / 2], fp32."""
        angles = position_ids[..., None].float() * self.inv_freq.float().to(x.device)
        return angles.cos(), angles.sin()
