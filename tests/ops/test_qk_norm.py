import pytest
import torch

from megatron_ngpt.ops.qk_norm import rotary, rotary_qk_norm
from megatron_ngpt.ops.rope import inverse, rotary_table, rotate
from tests.ops.compare import assert_same_maths, normal

POSITIONS = torch.tensor([[0, 1, 2, 0, 9], [3, 4, 5, 6, 4000]])


def plainly(x, table, style, scale=None):
    """The same from the definition, by autograd, in fp64."""
    turning = 2 * table.shape[-2]
    x, still = x[..., :turning], x[..., turning:]
    shape, dim = ((-1, 2), -1) if style.startswith("interleaved") else ((2, -1), -2)
    one, two = x.unflatten(-1, shape).unbind(dim)
    cos, sin = table.double().unbind(-1)
    turned = torch.stack((one * cos - two * sin, one * sin + two * cos), dim).flatten(-2)
    turned = torch.cat((turned, still), -1)
    if style.endswith("not normed"):
        return turned
    unit = turned / turned.norm(dim=-1, keepdim=True)
    return unit if scale is None else unit * scale


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize("turning", [6, 4])
@pytest.mark.parametrize("positions", [POSITIONS, POSITIONS[1]], ids=["per row", "shared"])
def test_definition(scaled, style, turning, positions, dtype, device, ops):
    x = (7 * normal(2, 5, 3, 6)).to(dtype)
    inputs = [x, normal(3, 6, seed=1)] if scaled else [x]
    table = rotary_table(positions, turning, 10000.0)
    found = assert_same_maths(
        lambda x, s=None: rotary_qk_norm(x, table.to(x.device), s, style, ops),
        lambda x, s=None: plainly(x, table, style, s),
        inputs,
        dtype,
        device,
    )
    assert found.dtype == dtype


def test_a_head_of_zeros_stays_and_has_a_finite_gradient(ops):
    x = torch.zeros(1, 2, 1, 4, requires_grad=True)
    found = rotary_qk_norm(x, rotary_table(torch.arange(2), 4, 10000.0), torch.ones(1, 4), ops=ops)
    assert not found.any()
    found.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_the_rotation_alone_in_any_layout(style, dtype, device, ops):
    """As GPT has it; heads before tokens in memory, as attention wants and gives them."""
    table = rotary_table(POSITIONS, 4, 10000.0)
    assert_same_maths(
        lambda x: rotary(x.transpose(1, 2), table.to(x.device), style, ops).transpose(1, 2),
        lambda x: plainly(x.transpose(1, 2), table, style + ", not normed").transpose(1, 2),
        [normal(2, 3, 5, 6).to(dtype)],
        dtype,
        device,
    )


def test_the_inverse_turns_back():
    x, table = normal(2, 5, 3, 6), rotary_table(POSITIONS, 6, 10000.0)
    assert torch.allclose(rotate(rotate(x, table), inverse(table)), x, atol=1e-6)
    assert not torch.allclose(rotate(x, table), x, atol=0.1)


def test_only_its_inputs_are_kept(dtype):
    kept = []
    table = rotary_table(POSITIONS, 6, 10000.0)
    x = normal(2, 5, 3, 6).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rotary_qk_norm(x, table)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), table.data_ptr()}
