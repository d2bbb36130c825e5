"""Kernels over the rows of [N, D]: unit, nGPT's residual step, RMSNorm. One pass over memory each.

A program holds a row in registers. Where a vector of length D gets a gradient, a program takes
every P-th row, adds up its part in registers and writes it to row p of [P, D], which is added up
after: no atomic additions, so that the result is the same each time. All arithmetic is fp32.
"""

from __future__ import annotations

from megatron_ngpt.ops.fused.gpu.lang import tl, triton

SHORTEST = tl.constexpr(1e-12)
"""What a length counts at least, to divide by; as in ``ops.lengths``."""


@triton.jit
def row_of(x, row, width, columns):
    """A row in fp32, zeros beyond its width."""
    return tl.load(x + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)


@triton.jit
def put_row(x, row, width, columns, values):
    """Write a row in the dtype of x."""
    tl.store(x + row * width + columns, values.to(x.dtype.element_ty), mask=columns < width)


@triton.jit
def length_of(values):
    """Length of a vector, to divide by."""
    return tl.maximum(tl.sqrt(tl.sum(values * values)), SHORTEST)


@triton.jit
def unit_gradient(grad, u, length, eps):
    """Gradient of x where u = x / (length + eps)."""
    along = tl.sum(u * grad) * ((length + eps) / length)
    return (grad - u * along) / (length + eps)


@triton.jit
def unit(x, out, width, eps, BLOCK: tl.constexpr):
    """out = x / (|x| + eps), a program a row."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    values = row_of(x, row, width, columns)
    put_row(out, row, width, columns, values / (length_of(values) + eps))


@triton.jit
def unit_backward(grad, x, out, width, eps, BLOCK: tl.constexpr):
    """Gradient of x, a program a row."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    values = row_of(x, row, width, columns)
    length = length_of(values)
    g = row_of(grad, row, width, columns)
    put_row(out, row, width, columns, unit_gradient(g, values / (length + eps), length, eps))


@triton.jit
def residual_step(h, branch, alpha, out, width, eps, BLOCK: tl.constexpr):
    """out = unit(a + |alpha| (b - a)) with a = unit(h), b = branch / (|branch| + eps)."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    step = tl.abs(row_of(alpha, 0, width, columns))
    a = row_of(h, row, width, columns)
    a = a / length_of(a)
    b = row_of(branch, row, width, columns)
    b = b / (length_of(b) + eps)
    s = a + step * (b - a)
    put_row(out, row, width, columns, s / length_of(s))


@triton.jit
def residual_step_backward(
    grad, h, branch, alpha, grad_h, grad_branch, sums, rows, width, eps, BLOCK: tl.constexpr
):
    """Gradients of h and branch, and each program's part of alpha's."""
    first, count = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    part = tl.zeros((BLOCK,), tl.float32)
    for row in range(first, rows, count):
        step = tl.abs(row_of(alpha, 0, width, columns))
        a, b = row_of(h, row, width, columns), row_of(branch, row, width, columns)
        length_h, length_branch = length_of(a), length_of(b)
        a, b = a / length_h, b / (length_branch + eps)
        s = a + step * (b - a)
        length_s = length_of(s)
        grad_s = unit_gradient(row_of(grad, row, width, columns), s / length_s, length_s, 0.0)
        part += (b - a) * grad_s
        gradient = unit_gradient(grad_s * step, b, length_branch, eps)
        put_row(grad_branch, row, width, columns, gradient)
        gradient = unit_gradient(grad_s - grad_s * step, a, length_h, 0.0)
        put_row(grad_h, row, width, columns, gradient)
    sign = row_of(alpha, 0, width, columns)
    sign = tl.where(sign > 0, 1.0, tl.where(sign < 0, -1.0, 0.0))
    put_row(sums, first, width, columns, part * sign)


@triton.jit
def rms_norm(x, gain, out, width, eps, BLOCK: tl.constexpr):
    """out = x / sqrt(mean(x^2) + eps) * gain, a program a row."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    values = row_of(x, row, width, columns)
    by_rms = tl.rsqrt(tl.sum(values * values) / width + eps)
    put_row(out, row, width, columns, values * by_rms * row_of(gain, 0, width, columns))


@triton.jit
def rms_norm_backward(
    grad, beside, x, gain, out, sums, rows, width, eps, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    """Gradient of x, to which ``beside`` is added, and each program's part of the gain's."""
    first, count = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    part = tl.zeros((BLOCK,), tl.float32)
    for row in range(first, rows, count):
        normed = row_of(x, row, width, columns)
        by_rms = tl.rsqrt(tl.sum(normed * normed) / width + eps)
        normed = normed * by_rms
        g = row_of(grad, row, width, columns)
        part += g * normed
        g = g * row_of(gain, 0, width, columns)
        g = (g - normed * (tl.sum(g * normed) / width)) * by_rms
        if ADD:
            g += row_of(beside, row, width, columns)
        put_row(out, row, width, columns, g)
    put_row(sums, first, width, columns, part)
