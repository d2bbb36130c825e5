"""The projection by itself, on matrices cut into pieces by hand."""

import itertools

import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.projection import Projection
from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.parallel.shard import Shard
from tests.distributed import run

SHAPES = {
    "rows": ((7, 5), 1),
    "columns": ((5, 7), 0),
    "free": ((6, 2), None),
    "vector": ((9,), None),
}


def values(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: 3 * torch.randn(shape, generator=generator) for n, (shape, _) in SHAPES.items()}


def expected(weights):
    found = {}
    for name, weight in weights.items():
        dim = SHAPES[name][1]
        exact = weight.double()
        found[name] = exact if dim is None else exact / exact.norm(dim=dim, keepdim=True)
    return found


def cut(weights, marks):
    """Flat pieces of all weights laid end to end, as one rank's fragments of [start, stop)."""
    start, stop = marks
    flat = torch.cat([w.flatten() for w in weights.values()])[start:stop].clone()
    fragments, begin = [], 0
    for name, weight in weights.items():
        first, last = max(start, begin), min(stop, begin + weight.numel())
        spec = ParameterSpec(name, tuple(weight.shape), SHAPES[name][1], None, "matrix")
        shard = Shard(spec.shape, (0,) * weight.dim(), spec.shape, replicated=True)
        length = max(0, last - first)
        fragments.append(Fragment(spec, shard, first - begin if length else 0, length, flat,
                                  first - start if length else 0, 0))  # fmt: skip
        begin += weight.numel()
    return fragments, flat


@pytest.mark.parametrize(("groups", "slack"), [(1, 0.3), (2, 0.0), (3, 0.2)])
@pytest.mark.parametrize("norm_dim", [0, 1])
def test_groups_and_slack(norm_dim, groups, slack):
    """Each group by itself, to the nearer bound when it is out of bounds; cut inside a group."""
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)) * 0.7
    weight[2:4] *= 0.3
    spec = ParameterSpec("w", (6, 6), norm_dim, None, "matrix", groups, slack)
    shard = Shard(spec.shape, (0, 0), spec.shape, replicated=True)
    flat = weight.flatten().clone()
    pieces = [Fragment(spec, shard, a, b - a, flat, a, 0) for a, b in ((0, 8), (8, 21), (21, 36))]
    whole = Projection([Fragment(spec, shard, 0, 36, flat, 0, 0)], None)
    parts = weight.double().chunk(groups, norm_dim)
    wanted = [
        part / part.norm(dim=norm_dim, keepdim=True)
        * part.norm(dim=norm_dim, keepdim=True).clamp(1 - slack, 1 + slack)
        for part in parts
    ]  # fmt: skip
    exact, distances = torch.cat(wanted, norm_dim), []
    for part, bound in zip(parts, wanted, strict=True):
        distances.append((part.norm(dim=norm_dim) - bound.norm(dim=norm_dim)).abs().max().item())
    assert float(whole.error()) == pytest.approx(max(distances), abs=1e-6)
    sums = sum(_sums_of(piece) for piece in pieces)
    assert torch.allclose(sums, _sums_of(Fragment(spec, shard, 0, 36, flat, 0, 0)), atol=1e-6)
    whole()
    assert (flat.view(6, 6) - exact).abs().max() <= 3e-7
    assert float(whole.error()) <= 3e-7


def _sums_of(fragment):
    """Squares that one fragment adds to."""
    projection = Projection([fragment], None)
    projection._sum(projection.squares)
    return projection.squares


def total():
    return sum(w.numel() for w in values().values())


def flat_of(weights):
    return torch.cat([w.flatten() for w in weights.values()])


@pytest.mark.parametrize("way", ["__call__", "alike"])
def test_whole_matrices_need_no_group(way):
    fragments, flat = cut(values(), (0, total()))
    getattr(Projection(fragments, None), way)()
    assert (flat - flat_of(expected(values()))).abs().max() <= 2e-7


def test_nothing_to_normalise_asks_for_no_communication():
    fragments, _ = cut(values(), (0, total()))
    free = [f for f in fragments if f.spec.norm_dim is None]
    Projection(free, group="no group at all")()
    Projection([], group="no group at all")()


def test_a_zero_vector_stays_zero():
    weights = values()
    weights["rows"][3] = 0
    fragments, flat = cut(weights, (0, total()))
    Projection(fragments, None)()
    assert flat[15:20].tolist() == [0.0] * 5
    assert torch.isfinite(flat).all()


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_a_tensor_parallel_piece_is_normalised_by_itself(name):
    """Its vectors are whole; where the piece lies in the unsharded parameter does not matter."""
    shape, norm_dim = SHAPES[name]
    whole = [2 * size if dim != norm_dim else size for dim, size in enumerate(shape)]
    origin = [0 if dim == norm_dim else size for dim, size in enumerate(shape)]
    spec = ParameterSpec(name, tuple(whole), norm_dim, 1 - norm_dim, "matrix")
    flat = values()[name].flatten()
    shard = Shard(shape, tuple(origin), shape, replicated=False)
    Projection([Fragment(spec, shard, 0, len(flat), flat, 0, 0)], None)()
    assert (flat.view(shape) - expected(values())[name]).abs().max() <= 2e-7


def _cut_anywhere(mesh):
    """Largest error over cuts at every pair of places, and the flat values of every ``alike``."""
    worst, last_bits = 0.0, set()
    exact = flat_of(expected(values()))
    for one, two in itertools.combinations_with_replacement(range(0, total() + 1, 4), 2):
        marks = [(0, one), (one, two), (two, total())][mesh.rank]
        fragments, flat = cut(values(), marks)
        Projection(fragments, mesh.group("dp"))()
        worst = max(worst, float((flat - exact[slice(*marks)]).abs().max()) if len(flat) else 0.0)
        fragments, flat = cut(values(), marks)
        Projection(fragments, mesh.group("dp")).alike()
        whole = torch.zeros(total())
        whole[slice(*marks)] = flat
        dist.all_reduce(whole)
        last_bits.add(tuple(whole.tolist()))
    return worst, last_bits


def test_any_cut_over_three_ranks_gives_the_same():
    """Among these are ranks with nothing of a matrix, all of it, part of a row, ends of columns."""
    for worst, last_bits in run(3, _cut_anywhere):
        assert worst <= 2e-7
        assert len(last_bits) == 1
