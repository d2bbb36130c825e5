"""Rotary position embedding with explicit positions (arXiv 2104.09864)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Style = Literal["interleaved", "half"]


def rotary_table(positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Cosine and sine of every angle position * theta^(-2i / rotary_dim).

    Args:
        positions: integer positions [T] or [B, T].
        rotary_dim: dimensions of a head that turn, even.
        theta: base of the frequencies.

    Returns:
        fp32 [..., T, 1, rotary_dim / 2, 2]; the last dimension is (cos, sin), the 1 is for heads.
    """
    pairs = torch.arange(0, rotary_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None, None].float() * theta ** (-pairs / rotary_dim)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, table: Tensor, style: Style = "interleaved") -> Tensor:
    """Turn pairs of the first R = rotary_dim dimensions by their angle, in fp32.

    Args:
        x: queries or keys [B, T, heads, head_dim].
        table: from :func:`rotary_table`, for these T positions.
        style: pairs are neighbours (x[2i], x[2i+1]) or lie R / 2 apart (x[i], x[i+R/2]).

    Returns:
        fp32, shape of ``x``.
    """
    turning, still = x.float().tensor_split([2 * table.shape[-2]], dim=-1)
    shape, dim = ((-1, 2), -1) if style == "interleaved" else ((2, -1), -2)
    one, two = turning.unflatten(-1, shape).unbind(dim)
    cos, sin = table.unbind(-1)
    turned = torch.stack((one * cos - two * sin, one * sin + two * cos), dim).flatten(-2)
    return torch.cat((turned, still), dim=-1) if still.shape[-1] else turned


def inverse(table: Tensor) -> Tensor:
    """The table that turns back: the transpose of every rotation."""
    cos, sin = table.unbind(-1)
    return torch.stack((cos, -sin), dim=-1)
