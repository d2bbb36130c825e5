"""Tiles of attention add up to the whole, and so do their gradients."""

import pytest
import torch

from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.ops.partial import Tile, add_gradients, add_tile
from tests.ops.compare import normal

T, ALL = 24, slice(None)
CUTS = {
    "one": [Tile(ALL, slice(0, T), slice(0, T), causal=True)],
    "late keys first": [
        Tile(ALL, slice(9, T), slice(9, T), causal=True),
        Tile(ALL, slice(9, T), slice(0, 9)),
        Tile(ALL, slice(0, 9), slice(0, 9), causal=True),
    ],
    "by sequence": [
        *(Tile(slice(b, b + 1), slice(0, T), slice(0, T), causal=True) for b in range(2)),
    ],
    "one token": [
        Tile(ALL, slice(0, 1), slice(0, 1), causal=True),
        Tile(ALL, slice(1, T), slice(0, 1)),
        Tile(ALL, slice(1, T), slice(1, T), causal=True),
    ],
}


def attend_in_tiles(cut, q, k, v, scale):
    out = torch.zeros(q.shape, device=q.device)
    lse = torch.full((2, q.shape[2], T), -torch.inf, device=q.device)
    for tile in cut:
        add_tile(tile, q, k, v, scale, out, lse)
    return out, lse


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_tiles_add_up(cut, kv_heads, size):
    """Also where scores are so large, with roundings as large, that sums are far apart."""
    q, k, v = (
        size * normal(2, T, 4, 8),
        normal(2, T, kv_heads, 8, seed=1),
        normal(2, T, kv_heads, 8),
    )
    grad, leaves = normal(2, T, 4, 8, seed=4), [x.clone().requires_grad_() for x in (q, k, v)]
    expected = sdpa_attention(*leaves, 0.5)
    expected.backward(grad)
    out, lse = attend_in_tiles(CUTS[cut], q, k, v, 0.5)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=2e-6 * size)
    grads = tuple(torch.zeros_like(x) for x in (q, k, v))
    for tile in CUTS[cut]:
        add_gradients(tile, (q, k, v, out, lse), grad, 0.5, grads)
    for found, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(
            found, leaf.grad, rtol=0, atol=2e-6 * size * leaf.grad.abs().max()
        )


def test_half_precision_is_added_up_in_fp32(device):
    """Within a rounding of bf16 of the largest value, forward; some of them, backward."""
    cut, scale = CUTS["late keys first"], 0.5
    q, k, v = (normal(2, T, n, 8, seed=s).bfloat16().to(device) for s, n in enumerate((4, 2, 2)))
    grad = normal(2, T, 4, 8, seed=4).bfloat16().to(device)
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    exact = sdpa_attention(*leaves, scale)
    exact.backward(grad.float())
    out, lse = attend_in_tiles(cut, q, k, v, scale)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, exact.detach(), rtol=0, atol=2**-8 * float(v.abs().max()))
    grads = tuple(torch.zeros_like(leaf) for leaf in leaves)
    for tile in cut:
        add_gradients(tile, (q, k, v, out.bfloat16(), lse), grad, scale, grads)
    for found, leaf in zip(grads, leaves, strict=True):
        limit = 4 * 2**-8 * float(leaf.grad.abs().max())
        torch.testing.assert_close(found, leaf.grad, rtol=0, atol=limit)
