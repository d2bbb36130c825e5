"""Causal attention on CPUs in C++ (fused/attention.cpp): forward and backward, fp32 arithmetic.

torch's kernel is right and slower: it multiplies what the mask hides, and small products at less
than the speed of large ones. What this one does not take goes there (``ops.attention``).
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ngpt import keep
from megatron_ngpt.ops.fused.build import NotBuilt, built

_SMALL = 1 << 14
"""Products of queries and keys below which waking other threads costs more than it saves."""


@cache
def load() -> ctypes.CDLL:
    """The library, compiled now unless it is on disk.

    Raises:
        NotBuilt: there is no compiler, or it failed.
    """
    try:
        return ctypes.CDLL(str(built(Path(__file__).with_name("fused") / "attention.cpp")))
    except OSError as err:
        raise NotBuilt(f"attention in C++ cannot be loaded ({err})") from err


def suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the library can work on them: whole sequences, heads of one width, fp32 or bf16."""
    if torch.compiler.is_compiling() or q.dtype not in (torch.float32, torch.bfloat16):
        return False
    same = all(x.device.type == "cpu" and x.dtype == q.dtype for x in (q, k, v))
    return same and q.numel() > 0 and q.shape[1] == k.shape[1] and q.shape[-1] == v.shape[-1]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax(scale q k) v`` over the keys up to each query's place.

    Args:
        q: [B, T, N, H].
        k: [B, T, K, H]; N is a multiple of K.
        v: [B, T, K, H].
        scale: factor of the products.

    Returns:
        [B, T, N, H].
    """
    out: Tensor = _Attention.apply(q, k, v, scale)
    return out


class _Attention(torch.autograd.Function):
    """Keeps its inputs, its output and the log of each query's sum, fp32 [B, N, T]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = map(_heads_whole, (q, k, v))
        out, lse = keep.op("attention", lambda: _forward(q, k, v, scale))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        made: Tensor = out
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = _heads_whole(grad.to(q.dtype))
        grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        given = _pointers(grad, q, k, v, out, lse, grad_q, grad_k, grad_v)
        load().ngpt_attention_backward(
            int(q.dtype == torch.bfloat16), *given, *_call(q, k, v, grad, ctx.scale)
        )
        return grad_q, grad_k, grad_v, None


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1])
    given = _pointers(q, k, v, out, lse)
    load().ngpt_attention(int(q.dtype == torch.bfloat16), *given, *_call(q, k, v, q, scale))
    return out, lse


def _call(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float) -> tuple[Any, ...]:
    """Sizes and distances, the scale and the number of threads, as the library asks for them."""
    batch, tokens, heads, width = q.shape
    numbers = (batch, tokens, heads, k.shape[2], width)
    apart = (d for x in (q, k, v, grad) for d in x.stride()[:3])
    small = batch * heads * tokens**2 < _SMALL
    threads = 1 if small else torch.get_num_threads()
    return (ctypes.c_int64 * 17)(*numbers, *apart), ctypes.c_float(scale), threads


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


def _heads_whole(x: Tensor) -> Tensor:
    """The values of a head side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
