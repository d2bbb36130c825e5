"""Causal softmax attention, one function; sole home of flash-attn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.extras import available, require

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q [B, T, N, H], k [B, S, K, H], v [B, S, K, H], scale) -> [B, T, N, H], causal, with the T
queries standing at the last T of the S positions; N is a multiple of K."""


def pick_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> Attend:
    """The implementation behind ``engine.attention`` = auto, sdpa or flash.

    Raises:
        ValueError: flash was asked for where it cannot run.
        ModuleNotFoundError: flash was asked for and flash-attn is not installed.
    """
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if wanted == "flash" and not fits:
        raise ValueError(
            f"engine.attention = flash needs a CUDA device and bf16, not {device.type} and "
            f"{dtype}: set engine.attention to auto or sdpa, or train.dtype to bf16"
        )
    if wanted == "flash" or (wanted == "auto" and fits and available("flash_attn")):
        require("flash_attn", "gpu", "engine.attention = flash")
        return flash_attention
    return sdpa_attention


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's scaled_dot_product_attention; runs everywhere. Shapes as in :data:`Attend`."""
    queries, keys = q.shape[1], k.shape[1]
    mask = None
    if 1 < queries < keys:  # a chunk after a cache: is_causal would align it to the top left
        mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=queries == keys and queries > 1,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """flash-attn (Dao, arXiv 2307.08691), CUDA and half precision; shapes as in :data:`Attend`."""
    flash = require("flash_attn", "gpu", "engine.attention = flash")
    return flash.flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
