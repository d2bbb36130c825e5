"""Attention to some of the keys: the piece that ring attention adds up.

A partial result is the softmax over the keys it saw and the log of the sum it divided by; two of
them merge exactly into the result over both sets of keys (arXiv 2205.14135, arXiv 2310.01889).
Shapes: q, out [B, T, N, H]; k, v [B, S, K, H]; lse fp32 [B, N, T].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class Tile(NamedTuple):
    """Queries and the keys they see, all of them, or up to their own place if causal."""

    rows: slice
    """Sequences of the batch."""
    queries: slice
    keys: slice
    causal: bool = False
    """Then there are as many keys as queries."""


def add_tile(
    tile: Tile, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor
) -> None:
    """Let queries also see a tile of keys: merge its softmax into ``out`` and ``lse``, in place.

    ``out`` is fp32 and may start as anything finite where ``lse`` is -inf.
    """
    there = (tile.rows, tile.queries)
    part, part_lse = _forward(
        q[there], k[tile.rows, tile.keys], v[tile.rows, tile.keys], tile, scale
    )
    sums = lse[tile.rows, :, tile.queries]
    total = torch.logaddexp(sums, part_lse)
    out[there] *= _per_query(sums - total)
    out[there] += part * _per_query(part_lse - total)
    sums.copy_(total)


def add_gradients(
    tile: Tile,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad: Tensor,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add a tile's share of the gradients of q, k and v to ``grads``, in place.

    Args:
        tile: as in forward.
        saved: q, k, v, and the final out (in the dtype of q) and lse over all keys.
        grad: of the final out.
        scale: as in forward.
        grads: fp32, shaped like q, k, v.
    """
    q, k, v, out, lse = saved
    there, seen = (tile.rows, tile.queries), (tile.rows, tile.keys)
    sums = lse[tile.rows, :, tile.queries].contiguous()
    found = _backward(grad[there], q[there], k[seen], v[seen], out[there], sums, tile, scale)
    for total, place, part in zip(grads, (there, seen, seen), found, strict=True):
        total[place] += part


def _per_query(log_weight: Tensor) -> Tensor:
    """[B, N, T] -> [B, T, N, 1]."""
    return log_weight.exp().transpose(1, 2)[..., None]


def _forward(q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over these keys and its log-sum-exp, by the kernels behind torch's SDPA."""
    if q.is_cuda:
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, tile.causal, False, scale=scale
        )
        return out, lse
    heads = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        *heads, 0.0, tile.causal, scale=scale
    )
    return out.transpose(1, 2), lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tile: Tile,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v; with the final out and lse, a tile's are its share of the whole."""
    if q.is_cuda:
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout: there is none
        lengths = (None, None, q.shape[1], k.shape[1])
        saved = (grad.contiguous(), q, k, v, out.contiguous(), lse)
        found: tuple[Tensor, Tensor, Tensor] = aten._flash_attention_backward(
            *saved, *lengths, 0.0, tile.causal, state, state, scale=scale
        )
        return found
    heads = (x.transpose(1, 2) for x in (grad, q, k, v, out))
    grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *heads, lse, 0.0, tile.causal, scale=scale
    )
    dq, dk, dv = (x.transpose(1, 2) for x in grads)
    return dq, dk, dv
