"""Kernels of queries and keys: rotary embedding, norm of every head's vector, scale by s_qk.

A program holds a few heads of one token. Pairs that turn together are neighbours (interleaved):
they are loaded side by side, 16 bytes at a time, and taken apart in registers; or they lie half of
the turning dimensions apart (half): both halves are loaded. Dimensions that stay still come last.
"""

from __future__ import annotations

from megatron_ngpt.ops.fused.gpu.lang import tl, triton
from megatron_ngpt.ops.fused.gpu.rows import SHORTEST


@triton.jit
def angles_of(table, at, turning, PAIRS: tl.constexpr):
    """Cosines and sines [1, PAIRS] of a token; pairs beyond the turning ones stay still."""
    column = tl.arange(0, 2 * PAIRS)
    both = tl.load(table + at * turning + column, mask=column < turning, other=0.0)
    cos, sin = tl.split(tl.reshape(both, (PAIRS, 2)))
    cos = tl.where(tl.arange(0, PAIRS) < turning // 2, cos, 1.0)
    cos, sin = cos[None, :], sin[None, :]
    return cos, sin


@triton.jit
def load_pairs(x, where, heads, size, turning, INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr):
    """First and second of each pair [HEADS, PAIRS] in fp32, zeros beyond.

    Half style: what stays still is not among them. Interleaved: it is, as pairs of angle 0.
    """
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)[None, :]
        both = tl.load(x + where + column, mask=heads & (column < size), other=0.0)
        both = both.to(tl.float32)
        return tl.split(tl.reshape(both, (both.shape[0], PAIRS, 2)))
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        mask = heads & (pair < turning // 2)
        one = tl.load(x + where + pair, mask=mask, other=0.0).to(tl.float32)
        two = tl.load(x + where + pair + turning // 2, mask=mask, other=0.0).to(tl.float32)
        return one, two


@triton.jit
def store_pairs(
    x, where, heads, size, turning, one, two, INTERLEAVED: tl.constexpr, PAIRS: tl.constexpr
):
    """The reverse of :func:`load_pairs`."""
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)[None, :]
        both = tl.reshape(tl.join(one, two), (one.shape[0], 2 * PAIRS))
        tl.store(x + where + column, both.to(x.dtype.element_ty), mask=heads & (column < size))
    else:
        pair = tl.arange(0, PAIRS)[None, :]
        mask = heads & (pair < turning // 2)
        tl.store(x + where + pair, one.to(x.dtype.element_ty), mask=mask)
        tl.store(x + where + pair + turning // 2, two.to(x.dtype.element_ty), mask=mask)


@triton.jit
def still_at(turning, size, STILL: tl.constexpr):
    """Columns [1, STILL] that do not turn, and which of them there are; half style."""
    column = turning + tl.arange(0, STILL)[None, :]
    return column, column < size


@triton.jit
def rotary(
    x, table, scale, out, tokens, n_heads, size, turning, x_batch, x_token, x_head, table_batch,
    NORMED: tl.constexpr, SCALED: tl.constexpr, INTERLEAVED: tl.constexpr, REST: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, STILL: tl.constexpr,
):  # fmt: skip
    """out = scale * unit(rotate(x)) of some heads of a token; out [B, T, heads, H] contiguous."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    heads, batch, t = head < n_heads, token // tokens, token % tokens
    where = batch * x_batch + t * x_token + head * x_head
    there, at = (token * n_heads + head) * size, head * size
    cos, sin = angles_of(table, batch * table_batch + t, turning, PAIRS)
    one, two = load_pairs(x, where, heads, size, turning, INTERLEAVED, PAIRS)
    one, two = one * cos - two * sin, one * sin + two * cos
    square = tl.sum(one * one + two * two, 1)
    if REST:
        column, mask = still_at(turning, size, STILL)
        still = tl.load(x + where + column, mask=heads & mask, other=0.0).to(tl.float32)
        square += tl.sum(still * still, 1)
    if NORMED:
        by = 1.0 / tl.maximum(tl.sqrt(square), SHORTEST)[:, None]
        one, two = one * by, two * by
        if SCALED:
            s_one, s_two = load_pairs(scale, at, heads, size, turning, INTERLEAVED, PAIRS)
            one, two = one * s_one, two * s_two
    store_pairs(out, there, heads, size, turning, one, two, INTERLEAVED, PAIRS)
    if REST:
        if NORMED:
            still = still * by
            if SCALED:
                still = still * tl.load(scale + at + column, mask=heads & mask, other=0.0)
        tl.store(out + there + column, still.to(out.dtype.element_ty), mask=heads & mask)


@triton.jit
def rotary_backward(
    grad, x, table, scale, out, sums, rows, tokens, n_heads, size, turning,
    g_batch, g_token, g_head, x_batch, x_token, x_head, table_batch,
    NORMED: tl.constexpr, SCALED: tl.constexpr, INTERLEAVED: tl.constexpr, REST: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, STILL: tl.constexpr,
):  # fmt: skip
    """Gradient of x, contiguous, and each program's part of the scale's [P, heads, H]."""
    first, count = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    heads, at = head < n_heads, head * size
    column, mask = still_at(turning, size, STILL)
    part_one = tl.zeros((HEADS, PAIRS), tl.float32)
    part_two = tl.zeros((HEADS, PAIRS), tl.float32)
    part_still = tl.zeros((HEADS, STILL), tl.float32)
    for token in range(first, rows, count):
        batch, t = token // tokens, token % tokens
        where = batch * g_batch + t * g_token + head * g_head
        there = (token * n_heads + head) * size
        cos, sin = angles_of(table, batch * table_batch + t, turning, PAIRS)
        g_one, g_two = load_pairs(grad, where, heads, size, turning, INTERLEAVED, PAIRS)
        if REST:
            g_still = tl.load(grad + where + column, mask=heads & mask, other=0.0).to(tl.float32)
        if NORMED:
            where = batch * x_batch + t * x_token + head * x_head
            one, two = load_pairs(x, where, heads, size, turning, INTERLEAVED, PAIRS)
            one, two = one * cos - two * sin, one * sin + two * cos
            square = tl.sum(one * one + two * two, 1)
            if REST:
                still = tl.load(x + where + column, mask=heads & mask, other=0.0).to(tl.float32)
                square += tl.sum(still * still, 1)
            by = 1.0 / tl.maximum(tl.sqrt(square), SHORTEST)[:, None]
            one, two = one * by, two * by
            if SCALED:
                part_one += g_one * one
                part_two += g_two * two
                s_one, s_two = load_pairs(scale, at, heads, size, turning, INTERLEAVED, PAIRS)
                g_one, g_two = g_one * s_one, g_two * s_two
            along = tl.sum(g_one * one + g_two * two, 1)
            if REST:
                still = still * by
                if SCALED:
                    part_still += g_still * still
                    g_still *= tl.load(scale + at + column, mask=heads & mask, other=0.0)
                along += tl.sum(g_still * still, 1)
                g_still = (g_still - still * along[:, None]) * by
            along = along[:, None]
            g_one, g_two = (g_one - one * along) * by, (g_two - two * along) * by
        one, two = g_one * cos + g_two * sin, g_two * cos - g_one * sin
        store_pairs(out, there, heads, size, turning, one, two, INTERLEAVED, PAIRS)
        if REST:
            tl.store(out + there + column, g_still.to(out.dtype.element_ty), mask=heads & mask)
    if SCALED:
        there = first * n_heads * size + at
        store_pairs(sums, there, heads, size, turning, part_one, part_two, INTERLEAVED, PAIRS)
        if REST:
            tl.store(sums + there + column, part_still, mask=heads & mask)
