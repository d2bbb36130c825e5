"""Angles are capped whatever the cut, against plain fp64 on whole matrices."""

import math

import pytest
import torch

from megatron_ngpt.engine.angle import CappedProjection
from tests.distributed import run
from tests.engine.test_projection import SHAPES, cut, expected, flat_of, total, values
from tests.engine.training import capped

CAP = 0.1


def moved():
    """Unit vectors, and the same after a step that turns some by more and some by less than CAP."""
    before = {name: weight.float() for name, weight in expected(values()).items()}
    steps = values(seed=1)
    step = {name: 0.02 * (1 + torch.arange(w.numel()).view(w.shape) % 7) * steps[name] / 3
            for name, w in before.items()}  # fmt: skip
    return before, {name: before[name] + step[name] for name in before}


def exact():
    before, after = moved()
    found = {}
    for name, weight in expected(after).items():
        dim = SHAPES[name][1]
        found[name] = weight if dim is None else capped(before[name], weight, dim, CAP)
    return flat_of(found).float()


def stepped(marks, group):
    before, after = moved()
    fragments, flat = cut(before, marks)
    projection = CappedProjection(fragments, group, CAP)
    projection.remember()
    flat.copy_(flat_of(after)[slice(*marks)])
    projection()
    return flat


def test_some_vectors_are_capped_and_some_are_not():
    _, after = moved()
    plain = flat_of(expected(after)).float()
    same = (exact() - plain).abs() < 1e-6
    assert 0.1 < same.float().mean() < 0.9


def test_whole_matrices():
    assert (stepped((0, total()), None) - exact()).abs().max() <= 3e-7


def test_no_cap_in_the_way_is_the_projection():
    before, after = moved()
    fragments, flat = cut(before, (0, total()))
    projection = CappedProjection(fragments, None, math.pi)
    projection.remember()
    flat.copy_(flat_of(after))
    projection()
    assert (flat - flat_of(expected(after))).abs().max() <= 3e-7


def test_angles_are_at_most_the_cap_and_lengths_stay_one_over_many_steps():
    """As lengths are computed from sums, an error in one would stay without the correction."""
    fragments, flat = cut(moved()[0], (0, total()))
    projection, seen = CappedProjection(fragments, None, CAP), 0.0
    for seed in range(200):
        old = flat[:35].view(7, 5).double()
        projection.remember()
        flat += 0.3 * torch.randn(total(), generator=torch.Generator().manual_seed(seed))
        projection()
        new = flat[:35].view(7, 5).double()
        cosines = (old * new).sum(1) / old.norm(dim=1) / new.norm(dim=1)
        seen = max(seen, cosines.clamp(max=1).acos().max().item())
    assert seen == pytest.approx(CAP, rel=1e-3)
    assert (flat[:35].view(7, 5).double().norm(dim=1) - 1).abs().max() <= 3e-7


def test_the_cap_may_change_between_steps_and_at_0_nothing_turns():
    fragments, flat = cut(moved()[0], (0, total()))
    projection = CappedProjection(fragments, None, CAP)
    for cap in (0.05, 0.2, 0.0):
        projection.cap, old = cap, flat[:35].view(7, 5).double()
        projection.remember()
        flat += 0.3 * torch.randn(total(), generator=torch.Generator().manual_seed(1))
        projection()
        cosines = torch.cosine_similarity(old, flat[:35].view(7, 5).double(), dim=1)
        assert cosines.clamp(max=1).acos().max() == pytest.approx(cap, rel=1e-3, abs=1e-3)


def _cut_anywhere(mesh):
    worst = 0.0
    for one, two in ((0, 3), (7, 38), (40, 61), (12, 12), (33, 70)):
        marks = [(0, one), (one, two), (two, total())][mesh.rank]
        found = stepped(marks, mesh.group("dp"))
        if len(found):
            worst = max(worst, float((found - exact()[slice(*marks)]).abs().max()))
    return worst


def test_any_cut_over_three_ranks_gives_the_same():
    assert max(run(3, _cut_anywhere)) <= 3e-7
