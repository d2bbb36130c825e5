"""Parameter names and options of the package nGPT-pytorch (0.2.16), and ours.

Their s_qk multiplies the queries once, ours twice, so ours is the root of theirs. Their scaling
vectors are stored at other scales (1 / dim for s_qk); the configuration made here has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatron_ngpt.config import ModelConfig, ScaleConfig

_ROOT = {
    "token_embed.linear.weight": "embed.weight",
    "to_logits.linear.weight": "head.weight",
    "logit_scale.scale": "s_z.value",
}
_BLOCK = {
    "0.fn.to_q.linear.weight": "attention.query.weight",
    "0.fn.to_k.linear.weight": "attention.key.weight",
    "0.fn.to_v.linear.weight": "attention.value.weight",
    "0.fn.to_out.linear.weight": "attention.output.weight",
    "0.fn.qk_scale.scale": "attention.s_qk.value",
    "0.branch_scale.scale": "attention_residual.alpha.value",
    "1.fn.to_hidden.linear.weight": "mlp.up.weight",
    "1.fn.to_gate.linear.weight": "mlp.gate.weight",
    "1.fn.to_out.linear.weight": "mlp.down.weight",
    "1.fn.hidden_scale.scale": "mlp.s_u.value",
    "1.fn.gate_scale.scale": "mlp.s_v.value",
    "1.branch_scale.scale": "mlp_residual.alpha.value",
}
_FREQUENCIES = "rotary_embed.freqs"


def our_name(theirs: str) -> str:
    """Our parameter for one of theirs; ``parametrizations.weight.original`` counts as ``weight``.

    Raises:
        ValueError: the package has no parameter called so.
    """
    plain = theirs.replace("parametrizations.weight.original", "weight")
    if plain in _ROOT:
        return _ROOT[plain]
    layer, _, rest = plain.removeprefix("layers.").partition(".")
    if not (plain.startswith("layers.") and layer.isdigit() and rest in _BLOCK):
        raise ValueError(f"{theirs} is no parameter of nGPT-pytorch")
    return f"blocks.{layer}.{_BLOCK[rest]}"


def from_ngpt_pytorch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict under our names; the rotary frequencies are in the configuration.

    Raises:
        ValueError: a scale of queries is negative, which ours, squared, cannot be.
    """
    found = {our_name(name): t for name, t in tensors.items() if name != _FREQUENCIES}
    for name in [name for name in found if name.endswith("s_qk.value")]:
        if bool((found[name] < 0).any()):
            raise ValueError(f"{name} has negative values: s_qk is squared here and cannot be")
        found[name] = (found[name] * found["embed.weight"].shape[1]).sqrt()
    return found


def model_config(options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ModelConfig:
    """Our configuration for the arguments of their ``nGPT`` and its state dict."""
    width, depth, alpha = options["dim"], options["depth"], options.get("alpha_init")
    return ModelConfig(
        width=width,
        layers=depth,
        heads=options.get("heads", 8),
        head_dim=options.get("dim_head", 64),
        ffn_width=int(width * options.get("ff_expand_factor", 4.0) * 2 / 3),
        vocab_size=options["num_tokens"],
        qk_norm=options.get("attn_norm_qk", True),
        value_residual=options.get("add_value_residual", True),
        tied_embedding=options.get("tied_embedding", False),
        hyperspheres=options.get("num_hyperspheres", 1),
        sphere_slack=options.get("norm_eps", 0.0),
        rope_frequencies=tuple(tensors[_FREQUENCIES].tolist()),
        alpha_attention=ScaleConfig(init=alpha or 1 / depth),
        alpha_mlp=ScaleConfig(init=alpha or 1 / depth),
        s_qk=ScaleConfig(scale=1.0),
    )
