"""Initial weights as a pure function of (seed, parameter name), the same on every topology."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from megatron_ngpt.model.spec import ParameterSpec

BLOCK = 1 << 20
"""Values drawn from one generator. A rank that holds a piece of a parameter draws only the blocks
the piece touches."""


def initial_values(spec: ParameterSpec, seed: int, start: int, stop: int) -> Tensor:
    """Values start..stop of the flattened parameter before normalisation, fp32 on CPU."""
    if spec.values:
        return torch.tensor(spec.values[start:stop])
    if spec.std == 0:
        return torch.full((stop - start,), spec.constant)
    first, last = start // BLOCK, -(-stop // BLOCK)  # blocks the piece touches
    drawn = torch.cat([torch.empty(0), *(_block(spec, seed, n) for n in range(first, last))])
    return drawn[start - first * BLOCK : stop - first * BLOCK]


def initial_box(
    spec: ParameterSpec, seed: int, offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> Tensor:
    """The box of initial values that begins at ``offsets``, before normalisation; fp32 on CPU."""
    if len(sizes) == 1:
        return initial_values(spec, seed, offsets[0], offsets[0] + sizes[0])
    width = spec.shape[1]
    first, last = offsets[0] * width, (offsets[0] + sizes[0]) * width
    if sizes[0] == 1:  # part of a row: draw no more than it touches
        first, last = first + offsets[1], first + offsets[1] + sizes[1]
        return initial_values(spec, seed, first, last).view(sizes)
    rows = initial_values(spec, seed, first, last).view(-1, width)
    return rows[:, offsets[1] : offsets[1] + sizes[1]]


def _block(spec: ParameterSpec, seed: int, number: int) -> Tensor:
    key = hashlib.blake2b(f"{seed}/{spec.name}/{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    size = min(BLOCK, math.prod(spec.shape) - number * BLOCK)
    return torch.empty(size).normal_(0.0, spec.std, generator=generator)


@torch.no_grad()
def initialise(model: nn.Module, table: dict[str, ParameterSpec], seed: int) -> None:
    """Fill a whole model on one device: initial values, matrices of nGPT on the sphere."""
    for name, parameter in model.named_parameters():
        spec = table[name]
        values = initial_values(spec, seed, 0, parameter.numel()).view(spec.shape)
        if spec.norm_dim is not None:  # rounded like the projection of initial values in an engine
            parts = values.unflatten(spec.norm_dim, (spec.groups, -1))
            dim = spec.norm_dim + 1
            length = torch.linalg.vector_norm(parts, dim=dim, dtype=torch.float64)
            bound = length.clamp(1 - spec.slack, 1 + spec.slack)
            values = (parts * (bound / length).float().unsqueeze(dim)).view(spec.shape)
        parameter.copy_(values)
