"""``engine.ops = triton``: the operations as Triton kernels, each forward and backward one launch.

Under torch.compile the reference takes over, which inductor fuses itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.ops.fused.gpu import activation, loss, rotary, rows
from megatron_ngpt.ops.fused.gpu.launch import (
    Launch,
    Launcher,
    power_of_two,
    programs,
    run,
    warps_for,
)
from megatron_ngpt.ops.fused.interface import Pair
from megatron_ngpt.ops.fused.reference import REFERENCE, Reference
from megatron_ngpt.ops.rope import Style

WIDEST = 1 << 14
"""Longest vector that a program holds in registers."""
_ROWS, _COLUMNS = 4, 512
"""A tile of the feed-forward's and the loss's kernels."""


class TritonOperations(Reference):
    """See ``interface.Operations`` for shapes.

    Args:
        launcher: what becomes of each launch; another one compiles or counts instead of running.
    """

    name = "triton"

    def __init__(self, launcher: Launcher = run) -> None:
        self.launch = launcher

    def unit(self, x: Tensor, eps: float) -> Tensor:
        """Reads x, writes the result."""
        if not _fits(x):
            return REFERENCE.unit(x, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._each_row(rows.unit, x, (x, out), eps)
        return out

    def unit_backward(self, grad: Tensor, x: Tensor, eps: float) -> Tensor:
        """Reads two, writes one."""
        if not _fits(grad, x):
            return REFERENCE.unit_backward(grad, x, eps)
        grad, x = grad.contiguous(), x.contiguous()
        out = torch.empty_like(x)
        self._each_row(rows.unit_backward, x, (grad, x, out), eps)
        return out

    def residual_step(self, h: Tensor, branch: Tensor, alpha: Tensor, eps: float) -> Tensor:
        """Reads h and branch, writes the result."""
        if not _fits(h, branch):
            return REFERENCE.residual_step(h, branch, alpha, eps)
        h, branch = h.contiguous(), branch.contiguous()
        out = torch.empty_like(h)
        self._each_row(rows.residual_step, h, (h, branch, _vector(alpha, h), out), eps)
        return out

    def residual_step_backward(
        self, grad: Tensor, h: Tensor, branch: Tensor, alpha: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reads three, writes two."""
        if not _fits(grad, h, branch):
            return REFERENCE.residual_step_backward(grad, h, branch, alpha, eps)
        grad, h, branch = grad.contiguous(), h.contiguous(), branch.contiguous()
        made = torch.empty_like(h), torch.empty_like(branch)
        tensors = (grad, h, branch, _vector(alpha, h), *made)
        return *made, self._some_rows(rows.residual_step_backward, h, tensors, eps)

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """Reads x, writes the result."""
        if not _fits(x):
            return REFERENCE.rms_norm(x, gain, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._each_row(rows.rms_norm, x, (x, _vector(gain, x), out), eps)
        return out

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, gain: Tensor, eps: float, beside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Reads two or three, writes one."""
        if not _fits(grad, x) or not (beside is None or _suits(grad, beside)):
            return REFERENCE.rms_norm_backward(grad, x, gain, eps, beside)
        grad, x = grad.contiguous(), x.contiguous()
        added = grad if beside is None else beside.contiguous()
        out = torch.empty_like(x)
        tensors = (grad, added, x, _vector(gain, x), out)
        return out, self._some_rows(rows.rms_norm_backward, x, tensors, eps, ADD=beside is not None)

    def rotary(
        self, x: Tensor, table: Tensor, scale: Tensor | None, normed: bool, style: Style
    ) -> Tensor:
        """Reads x, writes the result."""
        if not _suits(x):
            return REFERENCE.rotary(x, table, scale, normed, style)
        x, table = _heads_whole(x), table.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        matrix = table if scale is None else _matrix(scale, x)
        constants, heads = _turning(x, table, normed, scale is not None, style)
        numbers = (x.shape[1], *x.shape[2:], 2 * table.shape[-2], *x.stride()[:3], _apart(table))
        grid = (x.shape[0] * x.shape[1], -(-x.shape[2] // heads))
        arguments = (x, table, matrix, out, *numbers)
        self.launch(Launch(rotary.rotary, grid, arguments, constants, _warps(constants)))
        return out

    def rotary_backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        table: Tensor,
        scale: Tensor | None,
        normed: bool,
        style: Style,
    ) -> Pair:
        """Reads one or two, writes one."""
        if not _suits(grad, grad if x is None else x):
            return REFERENCE.rotary_backward(grad, x, table, scale, normed, style)
        grad, table = _heads_whole(grad), table.contiguous()
        x = grad if x is None else _heads_whole(x)
        out = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        matrix = table if scale is None else _matrix(scale, x)
        constants, heads = _turning(x, table, normed, scale is not None, style)
        tokens = x.shape[0] * x.shape[1]
        grid = (programs(x, tokens), -(-x.shape[2] // heads))
        sums = x.new_zeros((grid[0] if scale is not None else 0, *x.shape[2:]), dtype=torch.float32)
        numbers = (tokens, x.shape[1], *x.shape[2:], 2 * table.shape[-2])
        numbers += (*grad.stride()[:3], *x.stride()[:3], _apart(table))
        arguments = (grad, x, table, matrix, out, sums, *numbers)
        self.launch(Launch(rotary.rotary_backward, grid, arguments, constants, _warps(constants)))
        return out, None if scale is None else sums.sum(0)

    def swiglu(self, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None) -> Tensor:
        """Reads two, writes one."""
        if not _suits(u, v):
            return REFERENCE.swiglu(u, v, s_u, s_v)
        u, v = u.contiguous(), v.contiguous()
        out = torch.empty_like(u)
        scales = (_vector(s_u, u), _vector(s_v, u))
        self._each_tile(activation.swiglu, u, (u, v, *scales, out), s_u is not None)
        return out

    def swiglu_backward(
        self, grad: Tensor, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Reads three, writes two."""
        if not _suits(grad, u, v):
            return REFERENCE.swiglu_backward(grad, u, v, s_u, s_v)
        grad, u, v = grad.contiguous(), u.contiguous(), v.contiguous()
        made = torch.empty_like(u), torch.empty_like(v)
        tensors = (grad, u, v, _vector(s_u, u), _vector(s_v, u), *made)
        sums = self._some_tiles(activation.swiglu_backward, u, tensors, 2, s_u is not None)
        return *made, *(sums or (None, None))

    def squared_relu(self, u: Tensor, s_u: Tensor | None) -> Tensor:
        """Reads one, writes one."""
        if not _suits(u):
            return REFERENCE.squared_relu(u, s_u)
        u = u.contiguous()
        out = torch.empty_like(u)
        self._each_tile(activation.squared_relu, u, (u, _vector(s_u, u), out), s_u is not None)
        return out

    def squared_relu_backward(self, grad: Tensor, u: Tensor, s_u: Tensor | None) -> Pair:
        """Reads two, writes one."""
        if not _suits(grad, u):
            return REFERENCE.squared_relu_backward(grad, u, s_u)
        grad, u = grad.contiguous(), u.contiguous()
        out = torch.empty_like(u)
        tensors = (grad, u, _vector(s_u, u), out)
        kernel, scaled = activation.squared_relu_backward, s_u is not None
        sums = self._some_tiles(kernel, u, tensors, 1, scaled)
        return out, sums[0] if sums else None

    def softmax_sums(self, u: Tensor, scale: Tensor | None, real: int) -> tuple[Tensor, Tensor]:
        """Reads u once."""
        if not _suits(u) or u.dtype != torch.float32:
            return REFERENCE.softmax_sums(u, scale, real)
        u = u.contiguous()
        made = u.new_empty(len(u)), u.new_empty(len(u))
        arguments = (u, _vector(scale, u), *made, real, u.shape[1])
        constants = {"SCALED": scale is not None, "COLUMNS": 4 * _COLUMNS}
        self.launch(Launch(loss.softmax_sums, (len(u),), arguments, constants, 8))
        return made

    def softmax_gradient(
        self,
        u: Tensor,
        scale: Tensor | None,
        slope: Tensor | None,
        sums: tuple[Tensor, Tensor],
        weight: Tensor,
        column: Tensor,
        real: int,
    ) -> Tensor | None:
        """Reads and writes u."""
        if not _suits(u) or u.dtype != torch.float32 or not u.is_contiguous():
            return REFERENCE.softmax_gradient(u, scale, slope, sums, weight, column, real)
        each_row = (x.contiguous() for x in (*sums, weight, column))
        vectors = (_vector(scale, u), _vector(slope, u), *each_row)
        kernel, scaled = loss.softmax_gradient, scale is not None
        found = self._some_tiles(kernel, u, (u, *vectors), 1, scaled, real)
        return found[0] if found else None

    def _each_row(self, kernel: Any, x: Tensor, tensors: tuple[Tensor, ...], eps: float) -> None:
        """A program for every row of x."""
        width = x.shape[-1]
        constants = {"BLOCK": power_of_two(width)}
        grid, warps = (x.numel() // width,), warps_for(constants["BLOCK"])
        self.launch(Launch(kernel, grid, (*tensors, width, eps), constants, warps))

    def _some_rows(
        self, kernel: Any, x: Tensor, tensors: tuple[Tensor, ...], eps: float, **constants: Any
    ) -> Tensor:
        """A program for some rows each; the sum over all rows that they return parts of, [D]."""
        width = x.shape[-1]
        count = x.numel() // width
        constants = {"BLOCK": power_of_two(width), **constants}
        sums = x.new_empty((programs(x, count), width), dtype=torch.float32)
        arguments, warps = (*tensors, sums, count, width, eps), warps_for(constants["BLOCK"])
        self.launch(Launch(kernel, (len(sums),), arguments, constants, warps))
        return sums.sum(0)

    def _each_tile(self, kernel: Any, x: Tensor, tensors: tuple[Tensor, ...], scaled: bool) -> None:
        """A program for every tile of x."""
        width = x.shape[-1]
        count = x.numel() // width
        grid = (-(-count // _ROWS), -(-width // _COLUMNS))
        constants = {"SCALED": scaled, "ROWS": _ROWS, "COLUMNS": _COLUMNS}
        self.launch(Launch(kernel, grid, (*tensors, count, width), constants))

    def _some_tiles(
        self,
        kernel: Any,
        x: Tensor,
        tensors: tuple[Tensor, ...],
        scales: int,
        scaled: bool,
        *numbers: int,
    ) -> list[Tensor]:
        """A program for some tiles of its columns; the gradients of the scales, if any."""
        width = x.shape[-1]
        count = x.numel() // width
        down, across = -(-count // _ROWS), -(-width // _COLUMNS)
        grid = (programs(x, down, max(1, 8 // across)), across)
        size = (grid[0] if scaled else 0, width)
        sums = [x.new_empty(size, dtype=torch.float32) for _ in range(scales)]
        constants = {"SCALED": scaled, "ROWS": _ROWS, "COLUMNS": _COLUMNS}
        arguments = (*tensors, *sums, count, *numbers, width)
        self.launch(Launch(kernel, grid, arguments, constants))
        return [part.sum(0) for part in sums] if scaled else []


def _suits(*tensors: Tensor) -> bool:
    """Whether kernels can work on them: one of two dtypes, the same in all."""
    first = tensors[0]
    if torch.compiler.is_compiling() or first.dtype not in (torch.float32, torch.bfloat16):
        return False
    return all(t.dtype == first.dtype and t.numel() for t in tensors)


def _fits(*tensors: Tensor) -> bool:
    """The same for kernels that hold a whole row."""
    return _suits(*tensors) and tensors[0].shape[-1] <= WIDEST


def _vector(scale: Tensor | None, x: Tensor) -> Tensor:
    """One number per element of a row of x, in fp32; anything where there is no scale."""
    return x if scale is None else scale.float().expand(x.shape[-1]).contiguous()


def _matrix(scale: Tensor, x: Tensor) -> Tensor:
    """One number per head and dimension."""
    return scale.float().expand(x.shape[2:]).contiguous()


def _heads_whole(x: Tensor) -> Tensor:
    """x [B, T, heads, H] of which the H values of a head lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _apart(table: Tensor) -> int:
    """Positions from one sequence's table to the next; 0 where all share one."""
    return table.shape[-4] if table.dim() == 5 and table.shape[0] > 1 else 0


def _turning(
    x: Tensor, table: Tensor, normed: bool, scaled: bool, style: Style
) -> tuple[dict[str, Any], int]:
    """Constants of both rotary kernels, and how many heads a program takes."""
    size, turning, interleaved = x.shape[-1], 2 * table.shape[-2], style == "interleaved"
    pairs = power_of_two(max(1, (size if interleaved else turning) // 2))
    still = 1 if interleaved else power_of_two(max(1, size - turning))
    heads = max(1, min(power_of_two(x.shape[2]), 2048 // (2 * pairs)))
    constants = {
        "NORMED": normed,
        "SCALED": scaled,
        "INTERLEAVED": interleaved,
        "REST": not interleaved and size > turning,
        "HEADS": heads,
        "PAIRS": pairs,
        "STILL": still,
    }
    return constants, heads


def _warps(constants: dict[str, Any]) -> int:
    return warps_for(2 * constants["HEADS"] * constants["PAIRS"], 16)
