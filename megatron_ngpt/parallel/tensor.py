"""Tensor parallelism with sequence-sharded activations, applied to a model from outside.

A tp rank's model is the same model, narrower: heads / tp, ffn_width / tp, vocab_size / tp. What it
lacks is put in by hooks, by the table below; the maths of the modules does not change.

    embed        rows of some token ids; the others contribute zeros    -> sum, split tokens
    h            [B, T / tp, D] between blocks: unit() and the residual step work on the whole
                 vector of one token, so they need no communication
    attention    gather tokens -> q, k, v of some heads -> output       -> sum, split tokens
    mlp          gather tokens -> some inner units      -> down         -> sum, split tokens
    alpha, gain  the same on every rank, used on different tokens       -> gradients are summed
    mix, gain    of a head's maps, the same on every rank and head      -> gradients are summed
    s_qk, ...    split like what they scale; one shared number is on every rank -> the same
    head         gather tokens -> logits of some token ids              -> vocab-parallel loss

Source: arXiv 1909.08053 (the splits), arXiv 2205.05198 (sequence sharding).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_ngpt.mesh.collectives import (
    all_gather_tokens,
    gather_tokens,
    sum_and_split_tokens,
    sum_gradient,
)
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.parallel.loss import SplitColumns
from megatron_ngpt.parallel.shard import Shard

Style = Callable[[nn.Module, dist.ProcessGroup], Any]


def _gather_input(module: nn.Module, group: dist.ProcessGroup) -> None:
    module.register_forward_pre_hook(lambda _, args: (gather_tokens(args[0], group), *args[1:]))


def _sum_output(module: nn.Module, group: dist.ProcessGroup) -> None:
    module.register_forward_hook(lambda _, args, output: sum_and_split_tokens(output, group))


def _sum_gradient(module: nn.Module, group: dist.ProcessGroup) -> None:
    module.register_forward_hook(lambda _, args, output: sum_gradient(output, group))


def _sum_gradient_if_shared(module: nn.Module, group: dist.ProcessGroup) -> None:
    if getattr(module, "shared", False):
        _sum_gradient(module, group)


PLAN: dict[str, Style] = {
    r"embed": _sum_output,
    r"blocks\.\d+\.attention": _gather_input,
    r"blocks\.\d+\.attention\.output": _sum_output,
    r"blocks\.\d+\.attention\.(mix|head_norm\.gain)": _sum_gradient,
    r"blocks\.\d+\.mlp": _gather_input,
    r"blocks\.\d+\.mlp\.down": _sum_output,
    r"blocks\.\d+\.(attention|mlp)_residual\.(alpha|norm\.gain)": _sum_gradient,
    r"s_z|blocks\.\d+\.(attention\.s_qk|mlp\.s_[uv])": _sum_gradient_if_shared,
    r"final_norm\.gain": _sum_gradient,
    r"head": _gather_input,
}
"""Module name -> what is done around its forward."""


def apply_tensor_parallel(model: NGPT, vocabulary: Shard, group: dist.ProcessGroup) -> None:
    """Turn a narrower model into one rank's part of the whole one.

    Args:
        model: built from ``shard.local_model``.
        vocabulary: this rank's piece of the embedding table.
        group: the tensor-parallel ranks.
    """
    for name, module in model.named_modules():
        for pattern, style in PLAN.items():
            if re.fullmatch(pattern, name):
                style(module, group)
    first, rows = vocabulary.origin[0], vocabulary.real[0]
    if model.embed is not None:
        model.embed.first_row = first
    if model.head is not None:
        model.head.columns = SplitColumns(first, rows, group)
    model.mean_scale = partial(_mean_over_vocabulary, rows=rows, group=group)
    model.sequence_shards = group.size()


def _mean_over_vocabulary(scale: Tensor, rows: int, group: dist.ProcessGroup) -> Tensor:
    """Mean of every rank's s_z, padding left out; one shared number is its own mean."""
    if scale.numel() == 1:
        return scale
    sums = torch.stack((scale[:rows].sum(), torch.full_like(scale[0], rows)))
    dist.all_reduce(sums, group=group)
    return sums[0] / sums[1]


def gather_vocabulary(logits: Tensor, vocab_size: int, group: dist.ProcessGroup) -> Tensor:
    """Columns [B, T, padded V / tp] of every rank -> [B, T, V]; for looking, not for training."""
    columns = all_gather_tokens(logits.transpose(1, 2), group).transpose(1, 2)
    return columns[..., :vocab_size]
