"""Parameter names of NVIDIA/ngpt ``model.py`` (commit ed19eb2), nGPT and GPT baseline, and ours.

Two of theirs hold two of ours each, stacked along dimension 0: ``c_fc`` is (up, gate) and ``suv``
is (s_u, s_v). Their rotary embedding is meant as the interleaved one, as ours is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.config import ModelConfig, ScaleConfig

_ROOT = {
    "transformer.wte.weight": ("embed.weight",),
    "lm_head.weight": ("head.weight",),
    "sz": ("s_z.value",),
    "rmsnorm_f.weight": ("final_norm.gain.value",),
}
_BLOCK = {
    "query.weight": ("attention.query.weight",),
    "key.weight": ("attention.key.weight",),
    "value.weight": ("attention.value.weight",),
    "att_c_proj.weight": ("attention.output.weight",),
    "c_fc.weight": ("mlp.up.weight", "mlp.gate.weight"),
    "mlp_c_proj.weight": ("mlp.down.weight",),
    "sqk": ("attention.s_qk.value",),
    "suv": ("mlp.s_u.value", "mlp.s_v.value"),
    "attn_alpha": ("attention_residual.alpha.value",),
    "mlp_alpha": ("mlp_residual.alpha.value",),
    "rmsnorm_att.weight": ("attention_residual.norm.gain.value",),
    "rmsnorm_mlp.weight": ("mlp_residual.norm.gain.value",),
}


def our_names(theirs: str) -> tuple[str, ...]:
    """Our parameters inside one of theirs, in the order they are stacked.

    Raises:
        ValueError: no parameter of NVIDIA/ngpt is called so.
    """
    if theirs in _ROOT:
        return _ROOT[theirs]
    prefix, _, rest = theirs.removeprefix("transformer.h.").partition(".")
    if not (theirs.startswith("transformer.h.") and prefix.isdigit() and rest in _BLOCK):
        raise ValueError(f"{theirs} is no parameter of NVIDIA/ngpt's model.py")
    return tuple(f"blocks.{prefix}.{name}" for name in _BLOCK[rest])


def from_nvidia(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names, stacked ones split."""
    found: dict[str, Tensor] = {}
    for theirs, tensor in tensors.items():
        ours = our_names(theirs)
        found.update(zip(ours, tensor.chunk(len(ours)), strict=True))
    return found


def stack(theirs: str, ours: Mapping[str, Tensor]) -> Tensor:
    """One of their tensors put together from ours."""
    return torch.cat([ours[name] for name in our_names(theirs)])


def model_config(published: Mapping[str, Any]) -> ModelConfig:
    """Our configuration for their ``GPTConfig`` fields (n_layer, n_head, n_embd, ...)."""
    scale = published["base_scale"]
    return ModelConfig(
        architecture="ngpt" if published["use_nGPT"] else "gpt",
        width=published["n_embd"],
        layers=published["n_layer"],
        heads=published["n_head"],
        vocab_size=published["vocab_size"],
        init_std=scale,
        alpha_attention=ScaleConfig(init=0.05, scale=scale),
        alpha_mlp=ScaleConfig(init=0.05, scale=scale),
        s_qk=ScaleConfig(init=1.0, scale=scale),
        s_uv=ScaleConfig(init=1.0, scale=1.0),
        s_z=ScaleConfig(init=1.0, scale=scale),
    )
