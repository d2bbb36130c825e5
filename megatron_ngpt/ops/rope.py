"""Rotary position embedding with explicit positions (arXiv 2104.09864)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Style = Literal["interleaved", "half"]


class Scaling(NamedTuple):
    """How rotary embedding is stretched over sequences longer than those it was trained on."""

    kind: Literal["none", "linear", "ntk", "yarn"] = "none"
    factor: float = 1.0
    """Times as long."""
    original: int = 0
    """Tokens of the sequences before; only yarn asks."""
    unscaled: tuple[float, ...] = ()
    """Frequencies one by one, instead of theta's; only for none and linear."""

    @property
    def temperature(self) -> float:
        """Factor of attention's logits: (0.1 ln factor + 1)^2 for yarn (arXiv 2309.00071, eq. 22),
        else 1."""
        return (0.1 * math.log(self.factor) + 1) ** 2 if self.kind == "yarn" else 1.0


NOT_SCALED = Scaling()
_FAST, _SLOW = 32.0, 1.0  # yarn's beta and alpha: turns within the original length


def frequencies(
    rotary_dim: int,
    theta: float,
    scaling: Scaling = NOT_SCALED,
    device: torch.device | None = None,
) -> Tensor:
    """Angle per position of each pair of dimensions, fp32 [rotary_dim / 2].

    Without scaling theta^(-2i / rotary_dim). linear divides all by the factor (arXiv 2306.15595);
    ntk raises theta so that the slowest is divided by it and the fastest stays; yarn
    divides those that turn less than once within the original length, leaves those that turn more
    than 32 times, and goes linearly from the ones to the others (arXiv 2309.00071, section 3.2).
    """
    pairs = torch.arange(0, rotary_dim, 2, device=device, dtype=torch.float32)
    if scaling.kind == "ntk":
        theta *= scaling.factor ** (rotary_dim / max(1, rotary_dim - 2))
    plain = theta ** (-pairs / rotary_dim)
    if scaling.unscaled:
        plain = torch.tensor(scaling.unscaled, device=device, dtype=torch.float32)
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind != "yarn":
        return plain

    def pair_that_turns(times: float) -> float:
        return rotary_dim * math.log(scaling.original / (times * 2 * math.pi)) / 2 / math.log(theta)

    low = max(0, math.floor(pair_that_turns(_FAST)))
    high = min(rotary_dim - 1, math.ceil(pair_that_turns(_SLOW)))
    slow = ((pairs / 2 - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - slow) + plain / scaling.factor * slow


def rotary_table(
    positions: Tensor, rotary_dim: int, theta: float, scaling: Scaling = NOT_SCALED
) -> Tensor:
    """Cosine and sine of every angle position * frequency.

    Args:
        positions: integer positions [T] or [B, T].
        rotary_dim: dimensions of a head that turn, even.
        theta: base of the frequencies.
        scaling: of the frequencies.

    Returns:
        fp32 [..., T, 1, rotary_dim / 2, 2]; the last dimension is (cos, sin), the 1 is for heads.
    """
    per_position = frequencies(rotary_dim, theta, scaling, positions.device)
    angles = positions[..., None, None].float() * per_position
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


def for_both(values: Tensor, rotary_dim: int, style: Style = "interleaved") -> Tensor:
    """One value for each pair of dimensions that turn together, then those of dimensions that stay,
    as one value for each dimension: [..., rotary_dim / 2 + rest] -> [..., rotary_dim + rest]."""
    pairs, still = values.tensor_split([rotary_dim // 2], dim=-1)
    if style == "half":
        return torch.cat((pairs, pairs, still), dim=-1)
    return torch.cat((pairs.repeat_interleave(2, dim=-1), still), dim=-1)


def inverse(table: Tensor) -> Tensor:
    """The table that turns back: the transpose of every rotation."""
    cos, sin = table.unbind(-1)
    return torch.stack((cos, -sin), dim=-1)
