"""``config.json`` of a Hugging Face NGPT model, and our configuration.

The fields of NVIDIA's port, and those that ``megatron_ngpt/hf`` adds to them. Settings of training
alone, which the model there does not know, travel under ``training``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_ngpt.config import ModelConfig, ScaleConfig
from megatron_ngpt.config.model_checks import model_problems

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
_OPTIONS = {
    "tie_word_embeddings": "tied_embedding",
    "rms_norm_eps": "norm_eps",
    "attention_kind": "attention",
    "attention_maps": "maps",
    "map_dim": "map_dim",
    "head_norm_eps": "head_norm_eps",
    "qk_norm": "qk_norm",
    "gpt_qk_norm": "gpt_qk_norm",
    "value_residual": "value_residual",
    "residual_step": "residual",
    "num_hyperspheres": "hyperspheres",
    "sphere_slack": "sphere_slack",
    "mlp_norm_eps": "mlp_eps",
}
"""Fields called otherwise; one that is missing has our default, as the port has it."""
_SCALES = {
    "attn_alpha": "alpha_attention",
    "mlp_alpha": "alpha_mlp",
    "sqk": "s_qk",
    "suv": "s_uv",
    "sz": "s_z",
}
_OTHERS = (
    "architecture", "mlp", "rope_theta", "rope_style", "rotary_fraction", "rope_scaling",
    "rope_factor", "rope_original", "rope_frequencies",
)  # fmt: skip
_TRAINING = ("parametrisation", "reference_width", "reference_layers", "logit_preconditioning")
_PORT_MLP_EPS = 1e-6  # a constant in the port's code


def published_config(model: ModelConfig) -> dict[str, Any]:
    """The model's part of ``config.json``; :func:`model_config` turns it back.

    Raises:
        ValueError: a setting that the Hugging Face model does not have.
    """
    problems = list(_not_exported(model))
    if problems:
        raise ValueError("cannot be exported to Hugging Face:\n  - " + "\n  - ".join(problems))
    named = _SIZES | _OPTIONS
    found: dict[str, Any] = {theirs: getattr(model, ours) for theirs, ours in named.items()}
    return found | {
        "normalized": model.is_ngpt,
        "hidden_act": "silu" if model.is_gated else "relu2",
        "mlp_gated": model.is_gated,
        "rope_parameters": _their_rope(model),
        "rope_frequencies": list(model.rope_frequencies) or None,
        "rope_interleaved": model.rope_style == "interleaved",
        **_their_scales(model),
        "training": _training(model),
    }


def _not_exported(model: ModelConfig) -> Iterator[str]:
    """Settings that nothing here knows of, with another value than their default."""
    known = {*_SIZES.values(), *_OPTIONS.values(), *_SCALES.values(), *_OTHERS, *_TRAINING}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name not in known and value != getattr(ModelConfig(), field.name):
            yield f"model.{field.name} = {value}: the Hugging Face model has no such option"


def _their_scales(model: ModelConfig) -> dict[str, Any]:
    """Scaling vectors as they are in use, whatever parametrisation they come from."""
    found: dict[str, Any] = {"shared_scales": [], "fixed_scales": []}
    found["paired_sqk"] = model.s_qk.paired
    for theirs, ours in _SCALES.items():
        scale: ScaleConfig = getattr(model, ours)
        in_use = [model.scale_at(ours, layer) for layer in _layers(model, scale)]
        for ending, values in {
            "init_value": [one.init for one in in_use],
            "init_scaling": [one.scale for one in in_use],
        }.items():
            found[f"{theirs}_{ending}"] = values[0] if len(set(values)) == 1 else values
        found["shared_scales"] += [theirs] * scale.shared
        found["fixed_scales"] += [theirs] * (not scale.learned)
    return found


def _layers(model: ModelConfig, scale: ScaleConfig) -> range:
    """Layers to look at: all if there are lists."""
    listed = isinstance(scale.init, tuple) or isinstance(scale.scale, tuple)
    return range(model.layers if listed else 1)


def _training(model: ModelConfig) -> dict[str, Any] | None:
    """What training on would miss in the rest: settings unlike their defaults."""
    usual = ModelConfig()
    found = {
        name: getattr(model, name)
        for name in _TRAINING
        if getattr(model, name) != getattr(usual, name)
    }
    if model.parametrisation != "ngpt":  # the settings that its scaling vectors are derived from
        found["scales"] = {
            name: {"init": scale.init, "scale": scale.scale}
            for name in _SCALES.values()
            for scale in [getattr(model, name)]
        }
    return found or None


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


def model_config(published: Mapping[str, Any]) -> ModelConfig:
    """Our configuration for a ``config.json`` of the port or of ``megatron_ngpt/hf``.

    Raises:
        ValueError: it asks for something this project's model does not do.
    """
    _check_published(published)
    training = dict(published.get("training") or {})
    scales = {ours: _scale(published, theirs) for theirs, ours in _SCALES.items()}
    derived = {
        name: _scale_of(scales[name], made) for name, made in training.pop("scales", {}).items()
    }
    model = ModelConfig(
        architecture="ngpt" if published.get("normalized", True) else "gpt",
        **{ours: published[theirs] for theirs, ours in _SIZES.items()},
        **_options(published),
        **(scales | derived),
        mlp="swiglu" if published.get("mlp_gated") else "relu2",
        **_rope(published.get("rope_parameters") or published),
        rope_frequencies=tuple(published.get("rope_frequencies") or ()),
        rope_style="interleaved" if published.get("rope_interleaved") else "half",
        **training,
    )
    problems = list(model_problems(model))
    problems += list(_other_scales(model, published)) if derived else []
    if problems:
        raise ValueError("config.json makes no model:\n  - " + "\n  - ".join(problems))
    return model


def _options(published: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields for :data:`_OPTIONS`."""
    defaults = {"mlp_norm_eps": _PORT_MLP_EPS}
    if published.get("attention_kind", "standard") != "standard":
        defaults |= {"map_dim": published["head_dim"], "head_norm_eps": 1e-5}
    values = {name: published.get(name) for name in _OPTIONS}
    values = {name: defaults.get(name) if v is None else v for name, v in values.items()}
    return {_OPTIONS[name]: value for name, value in values.items() if value is not None}


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


def _scale(published: Mapping[str, Any], name: str) -> ScaleConfig:
    scaling = published.get(f"{name}_init_scaling")
    return ScaleConfig(
        init=_tuple(published[f"{name}_init_value"]),
        scale=_tuple(published["initializer_range"] if scaling is None else scaling),
        shared=name in (published.get("shared_scales") or ()),
        learned=name not in (published.get("fixed_scales") or ()),
        paired=name == "sqk" and bool(published.get("paired_sqk")),
    )


def _scale_of(scale: ScaleConfig, made: Mapping[str, Any]) -> ScaleConfig:
    """A scaling vector with the settings that its values are derived from."""
    return dataclasses.replace(scale, **{name: _tuple(value) for name, value in made.items()})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _other_scales(model: ModelConfig, published: Mapping[str, Any]) -> Iterator[str]:
    """Scaling vectors of a derived parametrisation that are not what was published."""
    made = _their_scales(model)
    for theirs in _SCALES:
        for name in (f"{theirs}_init_value", f"{theirs}_init_scaling"):
            if made[name] != published[name]:
                yield f"{name} = {published[name]}, but its training means {made[name]}"


_KNOWN: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", "linear", "yarn"),
    "hidden_act, mlp_gated": (("silu", True), ("relu2", False)),
    "attention_kind": ("standard", "differential", "ensemble"),
    "residual_step": ("lerp", "slerp"),
    "yarn's beta_fast, beta_slow": ((32, 1),),
}
"""What a ``config.json`` may say; of everything else :func:`_check_published` looks at, nothing."""


def _check_published(published: Mapping[str, Any]) -> None:
    rope = published.get("rope_parameters") or published.get("rope_scaling") or {}
    off = ("attention_bias", "mlp_bias", "attention_dropout")
    found: dict[str, Any] = {name: published.get(name, False) for name in off}
    found["rope_type"] = rope.get("rope_type", "default")
    found["hidden_act, mlp_gated"] = (
        published.get("hidden_act", "relu2"), published.get("mlp_gated", False)
    )  # fmt: skip
    found["attention_kind"] = published.get("attention_kind", "standard")
    found["residual_step"] = published.get("residual_step", "lerp")
    found["training"] = (
        sorted({*(published.get("training") or ())} - {*_TRAINING, "scales"}) or False
    )
    found["yarn's beta_fast, beta_slow"] = (rope.get("beta_fast", 32), rope.get("beta_slow", 1))
    if found["rope_type"] == "yarn":
        usual = _yarn_attention(rope["factor"])
        found["yarn's attention_factor"] = abs(rope.get("attention_factor", 1.0) - usual) > 1e-6
    for name, value in found.items():
        if value not in _KNOWN.get(name, (False,)):
            raise ValueError(
                f"config.json has {name} = {value}, which this project's model has not"
            )
