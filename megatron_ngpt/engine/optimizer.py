"""AdamW over the parameter table's groups."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from megatron_ngpt.config import OptimConfig
from megatron_ngpt.model.spec import ParameterSpec


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], table: dict[str, ParameterSpec], optim: OptimConfig
) -> torch.optim.AdamW:
    """Fused AdamW with two groups: vectors, without weight decay, then matrices.

    All normalised matrices share one group, so that ZeRO steps them together and the projection is
    one all-reduce. Vectors come first because ZeRO takes the dtype of its gradient buffers from the
    first parameter, and theirs is fp32 also in a bf16 run.
    """
    vectors: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in named:
        (vectors if table[name].group == "vector" else matrices).append(parameter)
    groups = [
        {"params": vectors, "weight_decay": 0.0},
        {"params": matrices, "weight_decay": optim.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use ``lr`` in the next step, for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
