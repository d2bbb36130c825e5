"""Kernels of the cross-entropy with s_z: a softmax's sums, and its gradient over the logits."""

from __future__ import annotations

from megatron_ngpt.ops.fused.gpu.lang import tl, triton


@triton.jit
def softmax_sums(
    u, scale, largest, total, real, width, SCALED: tl.constexpr, COLUMNS: tl.constexpr
):
    """Largest of z = scale u, and the sum of exp(z - largest), of a row; one pass, online."""
    row = tl.program_id(0).to(tl.int64)
    most = tl.full((COLUMNS,), float("-inf"), tl.float32)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, real, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        z = tl.load(u + row * width + column, mask=column < real, other=0.0)
        if SCALED:
            z *= tl.load(scale + column, mask=column < real, other=0.0)
        z = tl.where(column < real, z, float("-inf"))
        higher = tl.maximum(most, z)
        # a lane that has seen nothing yet: exp(-inf - 0) is the 0 that is wanted
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        sums, most = sums * tl.exp(most - finite) + tl.exp(z - finite), higher
    top = tl.max(most, 0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    tl.store(largest + row, top)
    tl.store(total + row, tl.sum(sums * tl.exp(most - finite), 0))


@triton.jit
def softmax_gradient(
    u, scale, slope, largest, total, weight, target, sums, rows, real, width,
    SCALED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """u becomes slope * weight * (softmax - [target]); each program's part of the scale's."""
    first, count = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    part = tl.zeros((COLUMNS,), tl.float32)
    for number in range(first, tl.cdiv(rows, ROWS), count):
        row = number * ROWS + tl.arange(0, ROWS)[:, None]
        there = row < rows
        mask = there & (column < real)
        cosines = tl.load(u + row * width + column, mask=mask, other=0.0)
        z = cosines
        if SCALED:
            z = z * tl.load(scale + column, mask=column < real, other=0.0)
        top = tl.load(largest + row, mask=there, other=0.0)
        share = tl.exp(z - top) / tl.load(total + row, mask=there, other=1.0)
        own = tl.load(target + row, mask=there, other=-1) == column
        by = tl.load(weight + row, mask=there, other=0.0)
        g = by * (share - tl.where(own, 1.0, 0.0))
        # a row that does not count stays out of it, whatever its logits are
        g = tl.where(mask & (by != 0), g, 0.0)
        if SCALED:
            part += tl.sum(tl.where(by != 0, g * cosines, 0.0), 0)
            g *= tl.load(slope + column, mask=column < real, other=0.0)
        tl.store(u + row * width + column, g, mask=there & (column < width))
    if SCALED:
        at = first * width + tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        mask = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS) < width
        tl.store(sums + at, part, mask=mask)
