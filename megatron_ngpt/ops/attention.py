"""Causal softmax attention, within documents if asked; sole home of flash-attn.

Documents of different lengths are one call of a kernel for many (arXiv 2307.08691) on a GPU in half
precision, and one call each elsewhere: no [T, T] mask in either case.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.extras import available, require
from megatron_ngpt.ops import cpu_attention as in_cpp
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.fused.build import NotBuilt

HALF = (torch.bfloat16, torch.float16)
_FLASH = "flash_attn_func"
"""What flash-attn 2 has and flash-attn 4 alone, which lies in the same package, has not."""


class Attend(Protocol):
    """What the model calls for attention, whoever computes it and wherever the tokens are."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None = None, /
    ) -> Tensor:
        """Causal attention, within each document where documents are given.

        Args:
            q: [B, T, N, H]; the T queries stand at the last T of the S positions.
            k: [B, S, K, H]; N is a multiple of K.
            v: [B, S, K, H].
            scale: factor of the products q k.
            documents: of the B whole sequences.

        Returns:
            [B, T, N, H].
        """


def pick_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> Attend:
    """The implementation behind ``engine.attention`` = auto, sdpa, flash or cpp.

    auto takes cpp on a CPU where it can be had, and torch's elsewhere unless flash-attn is there.

    Raises:
        ValueError: flash or cpp was asked for where it cannot run.
        ModuleNotFoundError: flash was asked for and flash-attn is not installed.
    """
    fits = device.type == "cuda" and dtype in HALF
    if wanted == "flash" and not fits:
        raise ValueError(
            f"engine.attention = flash needs a CUDA device and bf16, not {device.type} and "
            f"{dtype}: set engine.attention to auto or sdpa, or train.dtype to bf16"
        )
    if wanted == "flash" or (wanted == "auto" and fits and available("flash_attn", _FLASH)):
        _flash_attn()
        return flash_attention
    if wanted == "cpp" or (wanted == "auto" and device.type == "cpu"):
        return _cpp(wanted, device)
    return sdpa_attention


def _cpp(wanted: str, device: torch.device) -> Attend:
    if device.type != "cpu":
        raise ValueError(
            f"engine.attention = cpp runs on CPUs, not on {device.type}: set it to auto"
        )
    try:
        in_cpp.load()
    except NotBuilt as err:
        if wanted == "auto":
            return sdpa_attention
        raise ValueError(f"engine.attention = cpp: {err}; or set engine.attention to sdpa") from err
    return cpp_attention


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None = None
) -> Tensor:
    """torch's scaled_dot_product_attention; runs everywhere. Shapes as in :class:`Attend`."""
    if documents is None:
        return _sdpa(q, k, v, scale)
    if q.shape[1] < k.shape[1]:
        return _after_cache(q, k, v, scale, documents)
    if q.is_cuda and q.dtype in HALF:
        return _torch_varlen(q, k, v, scale, documents)
    return _each_document(q, k, v, scale, documents)


def cpp_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None = None
) -> Tensor:
    """C++ on CPUs for whole sequences, torch's for the rest; shapes as in :class:`Attend`."""
    if not in_cpp.suits(q, k, v):
        return sdpa_attention(q, k, v, scale, documents)
    if documents is None:
        return in_cpp.causal_attention(q, k, v, scale)
    return _each_document(q, k, v, scale, documents, in_cpp.causal_attention)


def _after_cache(q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents) -> Tensor:
    """Few queries after cached keys: a mask [B, T, S] is small."""
    keys = torch.arange(k.shape[1], device=q.device)
    first_BT, own_T = documents.first[:, -q.shape[1] :], keys[-q.shape[1] :]
    mask_BTS = (keys >= first_BT[..., None]) & (keys <= own_T[:, None])
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask_BTS[:, None],
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
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


def _each_document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    documents: Documents,
    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor] = _sdpa,
) -> Tensor:
    """One call per document; exact in every dtype."""
    found = [
        attend(q[row, None, start:stop], k[row, None, start:stop], v[row, None, start:stop], scale)
        for row, start, stop in documents
    ]
    return torch.cat(found, dim=1).view(*q.shape[:-1], v.shape[-1])


def _torch_varlen(q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents) -> Tensor:
    """torch's own kernel for sequences of different lengths, CUDA and half precision."""
    # importing it brings torch's compiler along, over a second that others do not have to pay
    from torch.nn.attention.varlen import varlen_attn

    longest = documents.longest
    out = varlen_attn(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        documents.offsets,
        documents.offsets,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=q.shape[2] != k.shape[2],
    )
    assert isinstance(out, Tensor)
    return out.view(*q.shape[:-1], v.shape[-1])


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None = None
) -> Tensor:
    """flash-attn (Dao, arXiv 2307.08691), CUDA and half precision; shapes as in :class:`Attend`."""
    flash = _flash_attn()
    if documents is not None and q.shape[1] < k.shape[1]:
        return _after_cache(q, k, v, scale, documents)
    # its backward adds up with atomics, and knows nothing of torch's setting
    how = {"causal": True, "deterministic": torch.are_deterministic_algorithms_enabled()}
    if documents is None:
        return flash.flash_attn_func(q, k, v, softmax_scale=scale, **how)
    flat = (x.flatten(0, 1) for x in (q, k, v))
    offsets, longest = documents.offsets, documents.longest
    out = flash.flash_attn_varlen_func(
        *flat, offsets, offsets, longest, longest, softmax_scale=scale, **how
    )
    return out.view(*q.shape[:-1], v.shape[-1])


def _flash_attn() -> ModuleType:
    return require("flash_attn", "gpu", "engine.attention = flash", _FLASH)
