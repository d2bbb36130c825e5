import pytest
import torch

from megatron_ngpt.ops.activation import squared_relu, swiglu
from tests.ops.compare import assert_same_maths, normal


def plainly(u, v, s_u=1.0, s_v=1.0):
    gate = s_v * v
    return s_u * u * gate / (1 + torch.exp(-gate))


@pytest.mark.parametrize("scaled", [False, True])
def test_definition(scaled, dtype, device, ops):
    u, v = (4 * normal(2, 3, 17)).to(dtype), (4 * normal(2, 3, 17, seed=1)).to(dtype)
    scales = [normal(17, seed=2), 3 * normal(17, seed=3)] if scaled else []
    found = assert_same_maths(
        lambda *x: swiglu(*x, ops=ops), plainly, [u, v, *scales], dtype, device
    )
    assert found.dtype == dtype


@pytest.mark.parametrize("gate", [-1e4, 1e4])
def test_gates_far_out(gate, ops):
    u, v = torch.tensor([[2.0]], requires_grad=True), torch.tensor([[gate]], requires_grad=True)
    found = swiglu(u, v, ops=ops)
    found.sum().backward()
    # cpp's exponential ends at e^88: 1e-34 instead of 0
    assert found.item() == pytest.approx(max(0.0, 2 * gate), abs=1e-30)
    assert u.grad.item() == pytest.approx(max(0.0, gate), abs=1e-30)
    assert v.grad.item() == pytest.approx(2.0 * (gate > 0), abs=1e-30)


def test_only_its_inputs_are_kept(dtype):
    kept = []
    u, v = (normal(2, 17, seed=s).to(dtype).requires_grad_() for s in (0, 1))
    scales = [normal(17, seed=s).requires_grad_() for s in (2, 3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swiglu(u, v, *scales)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (u, v, *scales)}


@pytest.mark.parametrize("scaled", [False, True])
def test_squared_relu(scaled, dtype, device, ops):
    scales = [normal(17, seed=1)] if scaled else []
    found = assert_same_maths(
        lambda *x: squared_relu(*x, ops=ops),
        lambda u, s=1.0: (s * u).clamp_min(0) ** 2,
        [(4 * normal(2, 3, 17)).to(dtype), *scales],
        dtype,
        device,
    )
    assert found.dtype == dtype
