"""Kernels between the matrices of the feed-forward: SwiGLU and squared ReLU with nGPT's scales.

Tiles of rows and columns. In the backward a program goes down every P-th tile of its columns and
adds up its part of the scales' gradients, see ``rows.py``.
"""

from __future__ import annotations

from megatron_ngpt.ops.fused.gpu.lang import tl, triton


@triton.jit
def tile(x, row, column, rows, width):
    """A tile in fp32, zeros outside."""
    mask = (row < rows) & (column < width)
    return tl.load(x + row * width + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def put_tile(x, row, column, rows, width, values):
    """Write a tile in the dtype of x."""
    mask = (row < rows) & (column < width)
    tl.store(x + row * width + column, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def scale_of(scale, column, width):
    """The scales [1, COLUMNS] of a tile's columns."""
    return tl.load(scale + column, mask=column < width, other=0.0)


@triton.jit
def put_sums(sums, program, column, width, values):
    """Write a program's part [1, COLUMNS] of a sum over rows."""
    tl.store(sums + program * width + column, values, mask=column < width)


@triton.jit
def where_is(number, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [ROWS, 1] of the number-th tile downwards, columns [1, COLUMNS] of this program's."""
    row = number * ROWS + tl.arange(0, ROWS)[:, None]
    return row, tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def swiglu(
    u, v, s_u, s_v, out, rows, width,
    SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = (s_u u) silu(s_v v)."""
    row, column = where_is(tl.program_id(0).to(tl.int64), ROWS, COLUMNS)
    up, gate = tile(u, row, column, rows, width), tile(v, row, column, rows, width)
    if SCALED:
        up *= scale_of(s_u, column, width)
        gate *= scale_of(s_v, column, width)
    put_tile(out, row, column, rows, width, up * gate * tl.sigmoid(gate))


@triton.jit
def swiglu_backward(
    grad, u, v, s_u, s_v, grad_u, grad_v, sums_u, sums_v, rows, width,
    SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of u and v, and each program's part of the scales'."""
    first, count = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    part_u, part_v = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for number in range(first, tl.cdiv(rows, ROWS), count):
        row, column = where_is(number, ROWS, COLUMNS)
        up, gate = tile(u, row, column, rows, width), tile(v, row, column, rows, width)
        plain_u, plain_v = up, gate
        if SCALED:
            up *= scale_of(s_u, column, width)
            gate *= scale_of(s_v, column, width)
        g = tile(grad, row, column, rows, width)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        g_u, g_v = g * silu, g * up * (sigmoid + silu * (1 - sigmoid))
        if SCALED:
            part_u += tl.sum(g_u * plain_u, 0)
            part_v += tl.sum(g_v * plain_v, 0)
            g_u *= scale_of(s_u, column, width)
            g_v *= scale_of(s_v, column, width)
        put_tile(grad_u, row, column, rows, width, g_u)
        put_tile(grad_v, row, column, rows, width, g_v)
    if SCALED:
        put_sums(sums_u, first, column, width, part_u[None, :])
        put_sums(sums_v, first, column, width, part_v[None, :])


@triton.jit
def squared_relu(
    u, s_u, out, rows, width, SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out = relu(s_u u)^2."""
    row, column = where_is(tl.program_id(0).to(tl.int64), ROWS, COLUMNS)
    up = tile(u, row, column, rows, width)
    if SCALED:
        up *= scale_of(s_u, column, width)
    up = tl.maximum(up, 0.0)
    put_tile(out, row, column, rows, width, up * up)


@triton.jit
def squared_relu_backward(
    grad, u, s_u, grad_u, sums, rows, width,
    SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of u, and each program's part of the scale's."""
    first, count = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    part = tl.zeros((COLUMNS,), tl.float32)
    for number in range(first, tl.cdiv(rows, ROWS), count):
        row, column = where_is(number, ROWS, COLUMNS)
        up = tile(u, row, column, rows, width)
        plain = up
        if SCALED:
            up *= scale_of(s_u, column, width)
        g = 2 * tl.maximum(up, 0.0) * tile(grad, row, column, rows, width)
        if SCALED:
            part += tl.sum(g * plain, 0)
            g *= scale_of(s_u, column, width)
        put_tile(grad_u, row, column, rows, width, g)
    if SCALED:
        put_sums(sums, first, column, width, part[None, :])
