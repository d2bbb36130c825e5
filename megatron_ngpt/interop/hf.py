"""Parameter names and configuration of the NGPT port for Hugging Face, and ours.

Source: NVIDIA's port proposed for transformers (PR 38276, head 0d276c3), and what ``hf/`` of this
package adds to it: ``gate_proj``, ``suv_gate``. Scaling vectors are columns [n, 1] there, vectors
[n] here; nothing else differs, so tensors go both ways without a change of a bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatron_ngpt.config import ModelConfig, ScaleConfig

_ROOT = {
    "model.embed_tokens.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    "sz.weight": "s_z.value",
}
_BLOCK = {
    "self_attn.q_proj.weight": "attention.query.weight",
    "self_attn.k_proj.weight": "attention.key.weight",
    "self_attn.v_proj.weight": "attention.value.weight",
    "self_attn.o_proj.weight": "attention.output.weight",
    "self_attn.sqk.weight": "attention.s_qk.value",
    "mlp.up_proj.weight": "mlp.up.weight",
    "mlp.gate_proj.weight": "mlp.gate.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
    "mlp.suv.weight": "mlp.s_u.value",
    "mlp.suv_gate.weight": "mlp.s_v.value",
    "attn_alpha": "attention_residual.alpha.value",
    "mlp_alpha": "mlp_residual.alpha.value",
}
MLP_EPS = 1e-6
"""Added to the length of the MLP's output, fixed in the port's code."""


def our_name(theirs: str) -> str:
    """Our parameter for one of theirs.

    Raises:
        ValueError: the port has no parameter called so.
    """
    if theirs in _ROOT:
        return _ROOT[theirs]
    prefix, _, rest = theirs.removeprefix("model.layers.").partition(".")
    if not (theirs.startswith("model.layers.") and prefix.isdigit() and rest in _BLOCK):
        raise ValueError(f"{theirs} is no parameter of the NGPT port")
    return f"blocks.{prefix}.{_BLOCK[rest]}"


def from_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes."""
    return {our_name(name): _ours(name, tensor) for name, tensor in tensors.items()}


def _ours(theirs: str, tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1) if tensor.dim() == 2 and tensor.shape[-1] == 1 else tensor


def model_config(published: Mapping[str, Any]) -> ModelConfig:
    """Our configuration for the port's ``config.json``."""
    scale = published["initializer_range"]
    return ModelConfig(
        width=published["hidden_size"],
        layers=published["num_hidden_layers"],
        heads=published["num_attention_heads"],
        kv_heads=published["num_key_value_heads"],
        head_dim=published["head_dim"],
        ffn_width=published["intermediate_size"],
        vocab_size=published["vocab_size"],
        mlp="relu2",
        mlp_eps=MLP_EPS,
        rope_theta=published["rope_theta"],
        rope_style="half",
        rotary_fraction=published["partial_rotary_factor"],
        init_std=scale,
        alpha_attention=ScaleConfig(init=published["attn_alpha_init_value"], scale=scale),
        alpha_mlp=ScaleConfig(init=published["mlp_alpha_init_value"], scale=scale),
        s_qk=ScaleConfig(init=published["sqk_init_value"], scale=scale),
        s_uv=ScaleConfig(init=published["suv_init_value"], scale=published["suv_init_scaling"]),
        s_z=ScaleConfig(init=published["sz_init_value"], scale=scale),
    )
