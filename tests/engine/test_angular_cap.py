"""Capped steps against the definition in fp64: angles, directions, lengths; small angles, too."""

import math

import pytest
import torch

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.engine.angular_cap import CappedProjection
from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.parallel.shard import local_shard

TABLE = parameter_table(ModelConfig(width=16, layers=1, heads=2, vocab_size=9))


def fragment_of(name: str, values: torch.Tensor) -> Fragment:
    shard = local_shard(TABLE[name], Degrees(pp=1, dp=1, cp=1, tp=1), 0)
    return Fragment(TABLE[name], shard, 0, values.numel(), values.view(-1), 0, 0)


def stepped(name: str, step: float, limit: float, count: int = 1):
    """(before, candidate, after) of ``count`` steps of a size in random directions."""
    generator = torch.Generator().manual_seed(7)
    dim = TABLE[name].norm_dim
    values = torch.randn(TABLE[name].shape, generator=generator)
    values /= values.norm(dim=dim, keepdim=True)
    projection = CappedProjection([fragment_of(name, values)], None)
    projection.limit = limit
    for _ in range(count):
        before = values.clone()
        projection.remember()
        values += step * torch.randn(values.shape, generator=generator)
        candidate = values.clone()
        projection()
    return (x.double().movedim(dim, -1) for x in (before, candidate, values))


def angle(a, b):
    """By atan2, exact for small ones."""
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


@pytest.mark.parametrize("name", ["blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"])
@pytest.mark.parametrize(("step", "limit"), [(0.1, 0.2), (1e-3, 1e-3), (1e-4, 3e-4), (0.4, 0.9)])
def test_no_vector_turns_further_and_none_that_may_is_held(name, step, limit):
    before, candidate, after = stepped(name, step, limit)
    wanted, found = angle(before, candidate), angle(before, after)
    # fp32 coordinates are rounded by 2^-25 of a component
    assert torch.allclose(found, wanted.clamp(max=limit), rtol=1e-3, atol=1e-7)
    assert int((wanted > limit).sum()) > 0 or limit == 3e-4
    assert (after.norm(dim=-1) - 1).abs().max() <= 3e-7


def test_the_way_is_the_shortest():
    before, candidate, after = stepped("blocks.0.mlp.up.weight", 0.3, 0.1)
    assert torch.allclose(
        angle(before, after) + angle(after, candidate), angle(before, candidate), atol=1e-6
    )


def test_a_limit_that_none_reaches_is_the_plain_projection():
    _, candidate, after = stepped("head.weight", 0.1, math.pi)
    assert torch.allclose(after, candidate / candidate.norm(dim=-1, keepdim=True), atol=2e-7)


def test_embeddings_turn_freely():
    before, candidate, after = stepped("embed.weight", 0.5, 1e-3)
    assert torch.allclose(angle(before, after), angle(before, candidate), atol=1e-6)


def test_rounding_does_not_add_up():
    *_, after = stepped("blocks.0.mlp.up.weight", 0.01, 0.01, count=3000)
    assert (after.norm(dim=-1) - 1).abs().max() <= 3e-7
