"""Rotary position embedding with explicit positions (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Cosine and sine of every angle position * theta^(-2i / head_dim).

    Args:
        positions: integer positions [T] or [B, T].
        head_dim: width of one head, even.
        theta: base of the frequencies.

    Returns:
        fp32 [..., T, 1, head_dim / 2, 2]; the last dimension is (cos, sin), the 1 is for heads.
    """
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None, None].float() * theta ** (-pairs / head_dim)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs (x[2i], x[2i+1]) by their angle, in fp32.

    Args:
        x: queries or keys [B, T, heads, head_dim].
        table: from :func:`rotary_table`, for these T positions.

    Returns:
        fp32, shape of ``x``.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
