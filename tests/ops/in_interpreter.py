"""Triton kernels against the reference, on CPU tensors or a GPU; test_kernels.py runs this file.

It has a process of its own, because Triton looks for TRITON_INTERPRET when it is imported.

The interpreter truncates fp32 to bf16 where a GPU rounds to nearest (Triton 3.9), so bf16 results
may be one unit in the last place off: 2^-7 of the value.
"""

import os

import pytest
import torch

from megatron_ngpt.ops.fused.gpu.operations import TritonOperations
from megatron_ngpt.ops.fused.reference import REFERENCE
from megatron_ngpt.ops.rope import rotary_table

KERNELS = TritonOperations()
DEVICE = os.environ.get("KERNELS_DEVICE", "cpu")
DTYPES = [torch.float32, torch.bfloat16]
BF16_ROUNDING = 2**-7
"""Truncation is off by up to one unit in the last place, of 8 bits."""


def draw(*shape, dtype=torch.float32, seed=0, zero_row=True):
    """Normal values, one vector among them zero."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if zero_row and len(shape) > 1:
        x[(0,) * (len(shape) - 1)] = 0.0
    return x.to(DEVICE, dtype)


def agree(found, expected, dtype):
    """Shapes and dtypes alike, values within roundings of the largest."""
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        # sums of the scales' gradients are fp32 in both, of the same bf16 inputs
        low = one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=BF16_ROUNDING if low else 2e-5, atol=2e-5)


def both(name, dtype, *inputs):
    """The same call of an operation on kernels and reference."""
    copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    agree(getattr(KERNELS, name)(*inputs), getattr(REFERENCE, name)(*copies), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 65])
class TestRows:
    def test_unit(self, width, dtype):
        x, grad = draw(2, 3, width, dtype=dtype), draw(2, 3, width, dtype=dtype, seed=1)
        for eps in (0.0, 1e-3):
            both("unit", dtype, x, eps)
            # a zero vector has no direction: its gradient is the reference's 1e12, and left out
            both("unit_backward", dtype, grad[1:], x[1:], eps)

    @pytest.mark.parametrize("size", ["each", "one"])
    def test_residual_step(self, width, dtype, size):
        h, branch = draw(2, 3, width, dtype=dtype), draw(2, 3, width, dtype=dtype, seed=1)
        alpha = draw(width if size == "each" else 1, seed=2)
        for eps in (0.0, 1e-3):
            both("residual_step", dtype, h, branch, alpha, eps)
        if width > 1:  # on a sphere of two points every gradient is a rounding error
            grad = draw(1, 3, width, dtype=dtype, seed=3, zero_row=False)
            both("residual_step_backward", dtype, grad, h[1:], branch[1:], alpha, 1e-3)

    def test_rms_norm(self, width, dtype):
        x, gain = draw(2, 3, width, dtype=dtype), draw(width, seed=1)
        grad, beside = (draw(2, 3, width, dtype=dtype, seed=s) for s in (2, 3))
        both("rms_norm", dtype, x, gain, 1e-2)
        both("rms_norm_backward", dtype, grad, x, gain, 1e-2, None)
        both("rms_norm_backward", dtype, grad, x, gain, 1e-2, beside)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("style", ["interleaved", "half"])
@pytest.mark.parametrize(("size", "turning"), [(8, 8), (12, 4)])
@pytest.mark.parametrize("scale", [None, (3, 0), (1,)])
def test_rotary(size, turning, style, dtype, scale):
    heads = 3
    x = draw(2, 4, heads + 1, size, dtype=dtype)[:, :, 1:]  # heads lie apart, as of one product
    grad = draw(2, heads, 4, size, dtype=dtype, seed=1, zero_row=False).transpose(1, 2)
    x[0, 0] = grad[0, 0]  # no zero vector
    positions = torch.arange(8, device=DEVICE).view(2, 4)
    for table in (
        rotary_table(positions, turning, 100.0),
        rotary_table(positions[1], turning, 9.0),
    ):
        s = None if scale is None else draw(*((heads, size) if len(scale) == 2 else (1,)), seed=3)
        both("rotary", dtype, x, table, s, True, style)
        both("rotary_backward", dtype, grad, x, table, s, True, style)
        both("rotary", dtype, x, table, None, False, style)
        both("rotary_backward", dtype, grad, None, table, None, False, style)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 513])
@pytest.mark.parametrize("scaled", [False, True])
def test_feed_forward(width, dtype, scaled):
    u, v, grad = (draw(3, 6, width, dtype=dtype, seed=s) for s in range(3))
    s_u, s_v = (draw(width, seed=s) if scaled else None for s in (3, 4))
    both("swiglu", dtype, u, v, s_u, s_v)
    both("swiglu_backward", dtype, grad, u, v, s_u, s_v)
    both("squared_relu", dtype, u, s_u)
    both("squared_relu_backward", dtype, grad, u, s_u)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("vocabulary", "real"), [(9, 9), (1100, 1097), (600, 512)])
def test_loss(vocabulary, real, scaled):
    u = draw(7, vocabulary) * 5
    scale = draw(vocabulary, seed=1) if scaled else None
    both("softmax_sums", torch.float32, u, scale, real)
    sums = REFERENCE.softmax_sums(u, scale, real)
    weight = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.25, 0.0, 1.0], device=DEVICE)
    column = torch.tensor([0, real - 1, -1, 5, -1, 3, real // 2], device=DEVICE)
    found, expected = u.clone(), u.clone()
    arguments = (scale, None if scale is None else scale * 0.5, sums, weight, column, real)
    made = KERNELS.softmax_gradient(found, *arguments)
    agree(made, REFERENCE.softmax_gradient(expected, *arguments), torch.float32)
    agree(found, expected, torch.float32)


def test_sums_are_the_same_each_time():
    h, branch, grad = (draw(16, 48, seed=s) for s in range(3))
    one, again = (KERNELS.residual_step_backward(grad, h, branch, draw(48), 1e-3) for _ in "ab")
    assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))
