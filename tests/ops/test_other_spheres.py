import pytest
import torch

from megatron_ngpt.ops.hypersphere import unit
from megatron_ngpt.ops.other_spheres import soft_unit, step_along_arc, step_from_anywhere
from tests.ops.compare import assert_same_maths, normal

SHAPES = [(5, 33), (2, 3, 257)]


def exact_unit(x, dim=-1):
    return x / x.pow(2).sum(dim, keepdim=True).sqrt()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_along_the_arc(shape, dtype, device):
    """SLERP of section 2.2.2, sin((1 - a) t) / sin(t) h + sin(a t) / sin(t) b, then to length 1."""

    def slerp(h, branch, alpha):
        h, branch = exact_unit(h), exact_unit(branch)
        angle = (h * branch).sum(-1, keepdim=True).acos()
        first, second = ((1 - alpha) * angle).sin(), (alpha * angle).sin()
        return exact_unit((first * h + second * branch) / angle.sin())

    h, branch = normal(*shape).to(dtype), (30 * normal(*shape, seed=1)).to(dtype)
    alpha = 0.1 + 0.3 * normal(shape[-1], seed=2).abs()
    assert_same_maths(step_along_arc, slerp, [h, branch, alpha], dtype, device)


def test_one_step_size_along_the_arc_keeps_the_length_and_cuts_the_angle():
    h, branch = unit(normal(50, 33)), unit(normal(50, 33, seed=1))
    moved = step_along_arc(h, branch, torch.tensor([0.25]))
    whole, part = ((h * other).sum(-1).acos() for other in (branch, moved))
    assert torch.allclose(part, 0.25 * whole, atol=2e-6)


def test_a_step_from_an_h_of_another_length():
    h, branch, alpha = 3 * unit(normal(5, 33)), normal(5, 33, seed=1), torch.tensor([0.1])
    moved = step_from_anywhere(h, branch, alpha)
    assert torch.allclose(moved, unit(0.9 * h + 0.1 * unit(branch)), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_soft_unit(groups, dtype, device):
    """Lengths of groups outside of 0.9 to 1.1 become the bound, which is a constant to autograd."""

    def exact(x):
        parts = x.unflatten(-1, (groups, -1))
        length = parts.pow(2).sum(-1, keepdim=True).sqrt()
        return (parts * (length.detach().clamp(0.9, 1.1) / length)).flatten(-2)

    x = (normal(7, 33) * 33**-0.5 * groups**0.5).to(dtype)
    found = assert_same_maths(lambda x: soft_unit(x, groups, 0.1), exact, [x], dtype, device)
    lengths = found.float().unflatten(-1, (groups, -1)).norm(dim=-1)
    assert 0.89 < lengths.min() < 0.95 < 1.05 < lengths.max() < 1.11
