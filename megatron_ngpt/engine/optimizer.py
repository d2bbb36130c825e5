"""AdamW, or Muon and AdamW, over the parameter table's groups."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from megatron_ngpt.config import Config
from megatron_ngpt.config.parametrisation import learning_rate_factors
from megatron_ngpt.config.run import AVERAGES, OptimConfig
from megatron_ngpt.engine.adamw import AdamW
from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.fused_adamw import FusedAdamW
from megatron_ngpt.engine.gated import GatedAdamW
from megatron_ngpt.engine.muon import Muon
from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.ops.fused.build import NotBuilt


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]],
    table: dict[str, ParameterSpec],
    config: Config,
    device: torch.device,
) -> torch.optim.Optimizer:
    """AdamW with two groups: vectors, without weight decay, then matrices; those of blocks apart
    under Muon.

    All normalised matrices share one group, so that ZeRO steps them together and the projection is
    one all-reduce, unless the parametrisation has several learning rates for them. Vectors come
    first because ZeRO takes the dtype of its gradient buffers from the first parameter, and theirs
    is fp32 also in a bf16 run.
    """
    optim, factors = config.optim, learning_rate_factors(config)
    found: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        group = table[name].group
        muon, factor = optim.is_muon and group == "matrix", factors[group]
        if optim.is_muon and not muon:
            factor *= optim.adam_lr / optim.lr if optim.adam_lr else 1.0
        found.setdefault((group != "vector", muon, factor), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": optim.weight_decay if is_matrix else 0.0,
            "factor": factor,
            "muon": muon,
        }
        for (is_matrix, muon, factor), parameters in sorted(found.items(), key=lambda i: i[0])
    ]
    if optim.is_muon:
        fixed = optim.optimizer == "muonh"
        return Muon(groups, optim.lr, optim.betas, optim.eps, optim.momentum, fixed)
    if optim.gate != 1:
        return GatedAdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, gate=optim.gate)
    if device.type == "cpu" and config.engine.ops != "reference":
        with suppress(NotBuilt):
            return FusedAdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use ``lr``, times its factor, for every group in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def averages(
    optimizer: torch.optim.Optimizer, optim: OptimConfig, fragment: Fragment
) -> dict[str, Tensor]:
    """What the optimizer keeps of a fragment's flat parameter; zeros if it was never stepped."""
    names, flat = optim.averages(fragment.spec.group), fragment.flat
    state = optimizer.state[flat]
    if not state:
        state.update({name: torch.zeros_like(flat.data) for name in names})
        if names == AVERAGES:
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
    return {name: state[name] for name in names}
