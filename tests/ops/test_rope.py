import pytest
import torch

from megatron_ngpt.ops.rope import rotary_table, rotate
from tests.ops.compare import assert_same_maths, normal


def exact_rotate(x, positions, theta, width=None, style="interleaved"):
    """Pairs of the first ``width`` dimensions as complex numbers, times
    e^(i position theta^(-2i / width))."""
    width = width or x.shape[-1]
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions.double()[..., None, None] * frequencies
    order = torch.arange(width)
    if style == "half":  # pair i lies at i and i + width / 2
        order = order.view(2, -1).T.flatten()
    pairs = torch.view_as_complex(x[..., order].unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2)
    return torch.cat((turned[..., order.argsort()], x[..., width:]), dim=-1)


@pytest.mark.parametrize("head_dim", [2, 6, 64])
@pytest.mark.parametrize("theta", [100.0, 10000.0])
@pytest.mark.parametrize("rows", [None, 2], ids=["shared positions", "positions per row"])
def test_rotation_is_complex_multiplication(head_dim, theta, rows, dtype, device):
    positions = torch.arange(7) if rows is None else torch.tensor([[0, 1, 2, 0, 1, 5, 9]] * 2)
    if rows:
        positions[1] += 3
    x = normal(2, 7, 3, head_dim).to(dtype)
    table = rotary_table(positions.to(device), head_dim, theta)
    found = assert_same_maths(
        lambda x: rotate(x, table), lambda x: exact_rotate(x, positions, theta), [x], dtype, device
    )
    assert found.dtype == torch.float32


@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize("width", [2, 6, 16])
def test_both_styles_turn_the_first_dimensions_and_leave_the_rest(style, width, dtype, device):
    positions, x = torch.arange(7), normal(2, 7, 3, 16).to(dtype)
    table = rotary_table(positions.to(device), width, 1e6)
    assert_same_maths(
        lambda x: rotate(x, table, style),
        lambda x: exact_rotate(x, positions, 1e6, width, style),
        [x],
        dtype,
        device,
    )
    assert torch.equal(rotate(x.to(device), table, style)[..., width:], x[..., width:].float())


def test_only_the_distance_of_two_positions_matters():
    query, key = normal(1, 1, 1, 32), normal(1, 1, 1, 32, seed=1)

    def product(m, n):
        tables = [rotary_table(torch.tensor([p]), 32, 10000.0) for p in (m, n)]
        return float((rotate(query, tables[0]) * rotate(key, tables[1])).sum())

    # fp32 angles at position p are off by up to p 2^-24
    for shift in (1, 50, 4000):
        assert product(9 + shift, 2 + shift) == pytest.approx(product(9, 2), abs=2e-3)
    assert abs(product(9, 2) - product(9, 3)) > 0.1


def test_rotation_keeps_lengths_and_position_0():
    x = normal(1, 5, 2, 8)
    turned = rotate(x, rotary_table(torch.arange(5), 8, 10000.0))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6)
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.allclose(turned[:, 1], x[:, 1], atol=0.1)
