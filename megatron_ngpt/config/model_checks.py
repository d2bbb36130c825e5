"""Models that cannot be."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_ngpt.config.model import MAPS, SCALES, ModelConfig, ScaleConfig


def model_problems(model: ModelConfig) -> Iterator[str]:
    """Every impossible setting of a model, with the way out."""
    yield from _shape(model)
    yield from _sphere(model)
    yield from _scales(model)
    yield from _rope(model)


def _shape(model: ModelConfig) -> Iterator[str]:
    if model.width % model.heads and model.head_dim == model.width // model.heads:
        yield (
            f"model.width = {model.width} is not a multiple of model.heads = {model.heads}: "
            "change one or set model.head_dim"
        )
    wrong = list(_maps(model))
    yield from wrong
    possible = 0 < model.rotary_fraction <= 1 and model.rotary_dim > 0 and model.rotary_dim % 2 == 0
    if not wrong and not possible:
        yield (
            f"model.rotary_fraction = {model.rotary_fraction} turns {model.rotary_dim} of "
            f"model.map_dim = {model.map_dim} dimensions: choose a share up to 1 that is a "
            "positive even number of them"
        )
    if model.heads % model.kv_heads:
        yield (
            f"model.kv_heads = {model.kv_heads} does not divide model.heads = {model.heads}: "
            "every key head serves the same number of query heads"
        )


def _rope(model: ModelConfig) -> Iterator[str]:
    if model.rope_scaling == "yarn" and model.rope_original < 1:
        yield (
            f"model.rope_original = {model.rope_original}: yarn asks how long the sequences were "
            "that the model was trained with: set it to their data.seq_len"
        )
    if (model.rope_scaling == "none") != (model.rope_factor == 1):
        yield (
            f"model.rope_factor = {model.rope_factor} with model.rope_scaling = "
            f"{model.rope_scaling}: a factor and a way to scale go together; set both"
        )
    if model.rope_frequencies and model.rope_scaling in ("ntk", "yarn"):
        yield (
            f"model.rope_frequencies with model.rope_scaling = {model.rope_scaling}: it stretches "
            "those of rope_theta; set none or linear"
        )
    if model.rope_frequencies and len(model.rope_frequencies) != model.rotary_dim // 2:
        yield (
            f"model.rope_frequencies has {len(model.rope_frequencies)} values: a query has "
            f"{model.rotary_dim // 2} pairs that turn; give so many or none"
        )


def _sphere(model: ModelConfig) -> Iterator[str]:
    spheres = model.hyperspheres
    if not model.sphere_slack < 1:
        yield f"model.sphere_slack = {model.sphere_slack}: must be below 1, a unit vector's length"
    for name in ("width", "map_dim"):
        if getattr(model, name) % spheres:
            yield (
                f"model.hyperspheres = {spheres} does not divide model.{name} = "
                f"{getattr(model, name)}, which it cuts into groups: change one of them"
            )
    if not (model.is_ngpt or (model.on_one_sphere and model.residual == "lerp" and model.qk_norm)):
        yield (
            "model.hyperspheres, model.sphere_slack, model.residual and model.qk_norm shape the "
            "sphere, which model.architecture = gpt has not: set 1, 0, lerp and true"
        )
    if model.gpt_qk_norm and model.is_ngpt:
        yield (
            "model.gpt_qk_norm is for model.architecture = gpt; ngpt has model.qk_norm: set it to "
            "false"
        )


def _scales(model: ModelConfig) -> Iterator[str]:
    for name in SCALES:
        scale: ScaleConfig = getattr(model, name)
        if scale.paired and name != "s_qk":
            yield f"model.{name}.paired: only s_qk scales what turns in pairs: set it to false"
        if scale.paired and (scale.shared or not scale.learned):
            yield (
                f"model.{name}.paired with one number for all dimensions, which is paired anyway: "
                "set shared to false and learned to true, or paired to false"
            )
        for field in ("init", "scale"):
            value = getattr(scale, field)
            if not isinstance(value, tuple):
                continue
            if name == "s_z":
                yield f"model.s_z.{field} = {list(value)}: there is one head, give one number"
            elif len(value) != model.layers:
                yield (
                    f"model.{name}.{field} has {len(value)} values for model.layers = "
                    f"{model.layers}: give one number for all or one for each"
                )


def _maps(model: ModelConfig) -> Iterator[str]:
    kind, fixed = model.attention, MAPS[model.attention]
    if kind == "ensemble" and model.maps < 2:
        yield f"model.maps = {model.maps} with model.attention = ensemble: a sum needs at least 2"
    if kind != "ensemble" and model.maps != fixed:
        yield (
            f"model.maps = {model.maps} with model.attention = {kind}: it has {fixed}; set "
            "model.maps to 0 or model.attention to ensemble"
        )
    if kind == "standard" and model.map_dim != model.head_dim:
        yield (
            f"model.map_dim = {model.map_dim} with model.attention = standard: queries and keys "
            f"are as wide as values, model.head_dim = {model.head_dim}; set model.map_dim to 0"
        )
    if model.map_dim < 2 or model.map_dim % 2:
        yield (
            f"model.map_dim = {model.map_dim}: rotary embedding needs an even number above 0; set "
            f"it, widen model.head_dim = {model.head_dim} or lower model.maps = {model.maps}"
        )
    if model.map_dim > model.head_dim:
        yield (
            f"model.map_dim = {model.map_dim} is above model.head_dim = {model.head_dim}: queries "
            "and keys are at most as wide as values; lower it"
        )
