"""Hold an operation against a plain fp64 one, forward and backward."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2}
"""Largest difference from fp64 as a share of the largest value: a few roundings of fp32; four
roundings of bf16 (2^-8 each at worst), whose inputs are rounded before either side sees them."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values, the same in every test."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(
    ours: Tensor, exact: Tensor, dtype: torch.dtype, what: str = "", cancelled: float = 0.0
) -> None:
    """Equal within the tolerance of ``dtype``, relative to the largest exact value or term."""
    difference = (ours.cpu().double() - exact).abs().max()
    limit = TOLERANCES[dtype] * exact.abs().max().clamp_min(max(1e-3, cancelled))
    assert difference <= limit, f"{what}: {difference:.2e} apart, {limit:.2e} allowed"


def assert_same_maths(
    ours: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    inputs: list[Tensor],
    dtype: torch.dtype,
    device: torch.device,
    cancelled: float = 0.0,
) -> Tensor:
    """Compare values and the gradients of all inputs; returns our value.

    Inputs that are bf16 or fp32 stay so for ours; the exact side gets the same numbers in fp64.
    ``cancelled`` is the size of terms that cancel in a gradient, whose roundings stay.
    """
    mine = [x.detach().to(device).requires_grad_() for x in inputs]
    true = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = ours(*mine), exact(*true)
    weights = normal(*expected.shape, seed=99)
    (found * weights.to(found)).sum().backward()
    (expected * weights.to(found.dtype).double()).sum().backward()
    assert_close(found, expected, dtype, "value")
    for number, (x, y) in enumerate(zip(mine, true, strict=True)):
        assert x.grad is not None
        assert x.grad.dtype == x.dtype
        assert_close(x.grad, y.grad, dtype, f"gradient {number}", cancelled)
    return found
