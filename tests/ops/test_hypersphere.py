import pytest
import torch

from megatron_ngpt.ops.hypersphere import Scale, residual_step, unit
from tests.ops.compare import assert_same_maths, normal

SHAPES = [(1, 1), (5, 33), (2, 3, 257)]


def exact_unit(x, dim=-1):
    return x / x.pow(2).sum(dim, keepdim=True).sqrt()


def exact_step(h, branch, alpha, eps=0.0):
    h, towards = exact_unit(h), branch / (branch.pow(2).sum(-1, keepdim=True).sqrt() + eps)
    return exact_unit(h + alpha.abs() * (towards - h))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [-1, 0])
def test_unit(shape, dim, dtype, device):
    x = normal(*shape).to(dtype)
    found = assert_same_maths(
        lambda x: unit(x, dim), lambda x: exact_unit(x, dim), [x], dtype, device
    )
    assert found.dtype == dtype


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e6])
def test_unit_of_long_and_short_vectors(size):
    norms = unit(size * normal(4, 65)).double().norm(dim=-1)
    assert (norms - 1).abs().max() <= 2e-7


def test_unit_rounds_once():
    """To bf16 at the very end, by at most 2^-8 of a component; bf16 lengths would add as much."""
    x = normal(50, 65).bfloat16()
    exact = exact_unit(x.double())
    assert ((unit(x).double() - exact) / exact).abs().max() <= 1.001 * 2**-8


def test_unit_with_an_epsilon(dtype, device):
    x = normal(5, 33).to(dtype)
    found = assert_same_maths(
        lambda x: unit(x, eps=0.5),
        lambda x: x / (x.pow(2).sum(-1, keepdim=True).sqrt() + 0.5),
        [x],
        dtype,
        device,
    )
    assert found.float().norm(dim=-1).max() < 0.95


def test_unit_of_zeros_is_zeros(dtype, device):
    assert unit(torch.zeros(2, 5, dtype=dtype, device=device)).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("eps", [0.0, 40.0])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_residual_step(shape, eps, dtype, device, ops):
    h, branch = normal(*shape).to(dtype), (30 * normal(*shape, seed=1)).to(dtype)
    alpha = 0.3 * normal(shape[-1], seed=2)  # either sign
    found = assert_same_maths(
        lambda *x: residual_step(*x, eps, ops),
        lambda *x: exact_step(*x, eps),
        [h, branch, alpha],
        dtype,
        device,
    )
    assert found.dtype == dtype
    if dtype == torch.float32:
        assert (found.double().norm(dim=-1) - 1).abs().max() <= 2e-7


def test_residual_step_of_alpha_0_and_1(ops):
    h, branch = unit(normal(3, 17)), normal(3, 17, seed=1)
    assert torch.allclose(residual_step(h, branch, torch.zeros(17), ops=ops), h, atol=1e-7)
    assert torch.allclose(
        residual_step(h, branch, torch.ones(17), ops=ops), unit(branch), atol=1e-7
    )


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_residual_step_with_a_silent_branch_stays(eps, ops):
    h = unit(normal(3, 17)).requires_grad_()
    branch = torch.zeros(3, 17, requires_grad=True)
    found = residual_step(h, branch, torch.full((17,), 0.05), eps, ops)
    assert torch.allclose(found, h, atol=1e-7)
    found.sum().backward()
    assert h.grad.isfinite().all()
    assert branch.grad.isfinite().all()


@pytest.mark.parametrize(("init", "scale"), [(0.05, 0.125), (1.0, 1.0), (2.0, 0.01)])
def test_scale_starts_at_init_and_moves_by_lr_init_over_scale(init, scale):
    learned = Scale(6, init, scale)
    assert learned.value.tolist() == pytest.approx([scale] * 6)
    assert learned().tolist() == pytest.approx([init] * 6)
    with torch.no_grad():
        learned.value += 0.001
    assert (learned() - init).tolist() == pytest.approx([0.001 * init / scale] * 6, rel=1e-3)
    assert learned().dtype == torch.float32


def test_a_fixed_scale_has_no_parameter_and_a_shared_one_has_one():
    fixed, shared = Scale(7, 0.3, 0.1, learned=False), Scale(7, 0.3, 0.1, shared=True)
    assert list(fixed.parameters()) == []
    assert fixed().item() == pytest.approx(0.3)
    assert shared().tolist() == pytest.approx([0.3])
