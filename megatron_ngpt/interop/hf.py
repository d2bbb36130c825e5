"""Parameter names and configuration of the NGPT port for Hugging Face, and ours.

Source: NVIDIA's port proposed for transformers (PR 38276, head 0d276c3), and what
``megatron_ngpt/hf`` adds to it: a gate, interleaved pairs, scales of their own. Scaling vectors are
columns [n, 1] there, vectors [n] here; nothing else differs, so tensors go both ways without a
change of a bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
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
_TO_ROOT = {ours: theirs for theirs, ours in _ROOT.items()}
_TO_BLOCK = {ours: theirs for theirs, ours in _BLOCK.items()}
_PORT_MLP_EPS = 1e-6  # a constant in the port's code

_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ffn_width",
    "vocab_size": "vocab_size",
    "initializer_range": "init_std",
}
_SCALES = {
    "attn_alpha": "alpha_attention",
    "mlp_alpha": "alpha_mlp",
    "sqk": "s_qk",
    "suv": "s_uv",
    "sz": "s_z",
}
_OTHERS = ("architecture", "mlp", "mlp_eps", "rope_theta", "rope_style", "rotary_fraction")
_ROPE = ("rope_scaling", "rope_factor", "rope_original")
# of gpt, of attention that is refused, of training alone
_IRRELEVANT = ("norm_eps", "map_dim", "head_norm_eps", "logit_preconditioning")


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


def their_name(ours: str) -> str:
    """Their parameter for one of ours; the opposite of :func:`our_name`."""
    if ours in _TO_ROOT:
        return _TO_ROOT[ours]
    _, number, rest = ours.split(".", 2)
    return f"model.layers.{number}.{_TO_BLOCK[rest]}"


def to_ours(tensor: Tensor) -> Tensor:
    """A column as a vector; everything else as it is."""
    return tensor.squeeze(-1) if tensor.dim() == 2 and tensor.shape[-1] == 1 else tensor


def to_theirs(ours: str, tensor: Tensor) -> Tensor:
    """A scaling vector as a column, but for alpha, which is a vector there too."""
    return tensor.unsqueeze(-1) if tensor.dim() == 1 and ".alpha." not in ours else tensor


def from_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes."""
    return {our_name(name): to_ours(tensor) for name, tensor in tensors.items()}


def model_config(published: Mapping[str, Any]) -> ModelConfig:
    """Our configuration for a ``config.json`` of the port or of ``megatron_ngpt/hf``.

    Raises:
        ValueError: it asks for something this project's model does not do.
    """
    _check_published(published)
    rope = published.get("rope_parameters") or published
    fields: dict[str, Any] = {ours: published[theirs] for theirs, ours in _SIZES.items()}
    fields |= {ours: _scale(published, theirs) for theirs, ours in _SCALES.items()}
    return ModelConfig(
        **fields,
        mlp="swiglu" if published.get("mlp_gated") else "relu2",
        mlp_eps=published.get("mlp_norm_eps", _PORT_MLP_EPS),
        **_rope(rope),
        rope_style="interleaved" if published.get("rope_interleaved") else "half",
    )


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields of the rotary embedding."""
    found: dict[str, Any] = {
        "rope_theta": float(rope["rope_theta"]),
        "rotary_fraction": float(rope.get("partial_rotary_factor", 1.0)),
    }
    kind = rope.get("rope_type", "default")
    if kind != "default":
        found |= {"rope_scaling": kind, "rope_factor": float(rope["factor"])}
    if kind == "yarn":
        found["rope_original"] = rope["original_max_position_embeddings"]
    return found


def _their_rope(model: ModelConfig) -> dict[str, Any]:
    """``rope_parameters``. Theirs has no ntk: it is a larger theta, written as such."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rotary_fraction != 1:
        rope["partial_rotary_factor"] = model.rotary_fraction
    if model.rope_scaling == "ntk":
        size = model.rotary_dim
        rope["rope_theta"] *= model.rope_factor ** (size / max(1, size - 2))
    elif model.rope_scaling != "none":
        rope |= {"rope_type": model.rope_scaling, "factor": model.rope_factor}
    if model.rope_scaling == "yarn":
        rope["original_max_position_embeddings"] = model.rope_original
        rope["attention_factor"] = _yarn_attention(model.rope_factor)
    return rope


def _yarn_attention(factor: float) -> float:
    """Root of the factor of attention's logits (arXiv 2309.00071, eq. 22)."""
    return 0.1 * math.log(factor) + 1


def _scale(published: Mapping[str, Any], name: str) -> ScaleConfig:
    scaling = published.get(f"{name}_init_scaling")
    return ScaleConfig(
        init=published[f"{name}_init_value"],
        scale=published["initializer_range"] if scaling is None else scaling,
    )


_KNOWN: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", "linear", "yarn"),
    "hidden_act, mlp_gated": (("silu", True), ("relu2", False)),
    "yarn's beta_fast, beta_slow": ((32, 1),),
}
"""What a ``config.json`` may say; of everything else :func:`_check_published` looks at, nothing."""


def _check_published(published: Mapping[str, Any]) -> None:
    rope = published.get("rope_parameters") or published.get("rope_scaling") or {}
    off = ("attention_bias", "mlp_bias", "attention_dropout", "tie_word_embeddings")
    found: dict[str, Any] = {name: published.get(name, False) for name in off}
    found["rope_type"] = rope.get("rope_type", "default")
    found["hidden_act, mlp_gated"] = (
        published.get("hidden_act", "relu2"), published.get("mlp_gated", False)
    )  # fmt: skip
    found["yarn's beta_fast, beta_slow"] = (rope.get("beta_fast", 32), rope.get("beta_slow", 1))
    if found["rope_type"] == "yarn":
        usual = _yarn_attention(rope["factor"])
        found["yarn's attention_factor"] = abs(rope.get("attention_factor", 1.0) - usual) > 1e-6
    for name, value in found.items():
        if value not in _KNOWN.get(name, (False,)):
            raise ValueError(f"config.json has {name} = {value}, which this project's nGPT has not")


def published_config(model: ModelConfig) -> dict[str, Any]:
    """The model's part of ``config.json``; :func:`model_config` turns it back.

    Raises:
        ValueError: a setting that the Hugging Face model does not have.
    """
    problems = list(_not_exported(model))
    if problems:
        raise ValueError("cannot be exported to Hugging Face:\n  - " + "\n  - ".join(problems))
    found: dict[str, Any] = {theirs: getattr(model, ours) for theirs, ours in _SIZES.items()}
    for theirs, ours in _SCALES.items():
        scale: ScaleConfig = getattr(model, ours)
        found[f"{theirs}_init_value"] = scale.init
        found[f"{theirs}_init_scaling"] = scale.scale
    return found | {
        "hidden_act": "silu" if model.is_gated else "relu2",
        "mlp_gated": model.is_gated,
        "mlp_norm_eps": model.mlp_eps,
        "rope_parameters": _their_rope(model),
        "rope_interleaved": model.rope_style == "interleaved",
    }


def _not_exported(model: ModelConfig) -> Iterator[str]:
    """Settings with another value than the only one that the Hugging Face model knows."""
    if not model.is_ngpt:
        yield f"model.architecture = {model.architecture}: only ngpt has a Hugging Face model here"
    known = {*_SIZES.values(), *_SCALES.values(), *_OTHERS, *_ROPE, *_IRRELEVANT}
    usual = ModelConfig()
    for name in _SCALES.values():
        scale: ScaleConfig = getattr(model, name)
        if (
            scale.shared
            or not scale.learned
            or isinstance(scale.init, tuple)
            or isinstance(scale.scale, tuple)
        ):
            yield f"model.{name} is shared, fixed or has an init for each layer: export knows one"
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name not in known and value != getattr(usual, field.name):
            yield f"model.{field.name} = {value}: the Hugging Face model has no such option"
