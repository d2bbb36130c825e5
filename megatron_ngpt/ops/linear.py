"""Matrices: linear maps and embedding tables that compute in the dtype of the activations.

A weight may be an fp32 master (ZeRO 0 and 3) or a bf16 copy (ZeRO 1 and 2); casting where it is
used makes both the same computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_ngpt import keep


@cache
def has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 matrices by instructions of their own."""
    # torch has no public question for it
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of x are computed in: its dtype, but fp32 for bf16 on a CPU without bf16 units.

    Without them torch multiplies bf16 matrices at a tenth of the speed of fp32. bf16 values are
    exact in fp32 and sums are fp32 either way, so only the speed differs.
    """
    slow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not has_bf16_units()
    return torch.float32 if slow else x.dtype


class _CastLinear(torch.autograd.Function):
    """``x @ weight.T`` that keeps the weight itself for the backward, not its cast.

    Autograd would hold the cast of every layer until then: a whole model in bf16 on every rank,
    which ZeRO-3 is there to avoid.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y: Tensor = keep.op("matmul", lambda: _product(x, weight.to(x.dtype).T))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        grad_x = _product(grad, weight.to(grad.dtype)) if need_x else None
        if not need_weight:
            return grad_x, None
        return grad_x, _product(_rows(grad).T, _rows(x)).to(weight.dtype)


def _product(x: Tensor, y: Tensor) -> Tensor:
    dtype = product_dtype(x)
    return (x.to(dtype) @ y.to(dtype)).to(x.dtype)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class Linear(nn.Module):
    """``x @ weight.T * factor`` without bias, in the dtype of ``x``."""

    def __init__(self, inputs: int, outputs: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        same = self.weight.dtype == x.dtype == product_dtype(x)
        y: Tensor = F.linear(x, self.weight) if same else _CastLinear.apply(x, self.weight)
        return y if self.factor == 1 else y * self.factor


_FEWEST = 256
"""Tokens from which on joining matrices costs less than the larger product saves."""


def all_of(x: Tensor, maps: Sequence[Linear]) -> Sequence[Tensor]:
    """``[m(x) for m in maps]``, on a CPU as one product each way where x is of many tokens.

    Small matrices are multiplied at less than half the speed there. Weights are used outside their
    modules, so they have to be whole.
    """
    weights: list[Tensor] = [m.weight for m in maps]
    one = x.device.type == "cpu" and x.numel() >= _FEWEST * x.shape[-1]
    one = one and not torch.compiler.is_compiling() and all(m.factor == 1 for m in maps)
    if not one or any(w.dtype != x.dtype or w.dtype != product_dtype(x) for w in weights):
        return [m(x) for m in maps]
    y: Tensor = _JoinedLinear.apply(x, *weights)
    return y.split([len(w) for w in weights], dim=-1)


class _JoinedLinear(torch.autograd.Function):
    """``x @ cat(weights).T``; joins them once more in backward instead of keeping them so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        y: Tensor = keep.op("matmul", lambda: F.linear(x, torch.cat(weights)))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        grad_x = grad @ torch.cat(weights) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return grad_x, *(None for _ in weights)
        joined = _rows(grad).T @ _rows(x)
        return grad_x, *joined.split([len(w) for w in weights])


class Embedding(nn.Module):
    """Rows of a table by token id, in a given dtype.

    With ``first_row`` set, the table holds the rows from there on and every other id gives zeros.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.first_row: int | None = None
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Integer ids [...] -> [..., width]; cast after the lookup, which touches few rows."""
        if self.first_row is None:
            return F.embedding(tokens, self.weight).to(self.dtype)
        rows = tokens - self.first_row
        elsewhere = (rows < 0) | (rows >= self.weight.shape[0])
        found = F.embedding(rows.masked_fill(elsewhere, 0), self.weight).to(self.dtype)
        return found.masked_fill(elsewhere[..., None], 0)
