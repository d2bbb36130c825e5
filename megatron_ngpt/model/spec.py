"""The parameter table: what every parameter is, for everything that is not the model's maths.

Sharding, the projection onto the sphere, the optimizer's groups, initial values and checkpoints all
read this table; none of them knows the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.config.model import LayerScale

Group = Literal["embedding", "matrix", "head", "vector"]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of the unsharded model."""

    name: str
    """Name in ``named_parameters()``."""

    shape: tuple[int, ...]
    """Shape on one device; matrices are [outputs, inputs]."""

    norm_dim: int | None
    """Dimension whose vectors have length 1 (the embedding axis), None if it is free."""

    tp_dim: int | None
    """Dimension that tensor parallelism splits, None if every rank keeps all of it. Never
    norm_dim, so the projection needs no tensor-parallel communication."""

    group: Group
    """Optimizer group."""

    groups: int = 1
    """Equal parts of every vector along norm_dim that have length 1 each."""

    slack: float = 0.0
    """How far from 1 a length may be without being changed."""

    std: float = 0.0
    """Standard deviation of the initial values; 0 for a constant."""

    constant: float = 0.0
    """Initial value when std is 0."""

    values: tuple[float, ...] = ()
    """Initial values one by one, of a small vector whose values differ."""

    @property
    def over_vocab(self) -> bool:
        """Whether dimension 0 counts token ids, which tp may have to pad."""
        return self.name in ("embed.weight", "head.weight", "s_z.value")

    @property
    def keeps_fp32(self) -> bool:
        """Whether it stays fp32 when matrices are bf16."""
        return self.group == "vector"


def parameter_table(model: ModelConfig) -> dict[str, ParameterSpec]:
    """Every parameter of a model by name, in the model's own order."""
    return {row.name: row for row in _rows(model)}


@lru_cache(maxsize=4)  # of a value, by a value: an estimate asks thousands of times
def _rows(model: ModelConfig) -> tuple[ParameterSpec, ...]:
    D, V, std = model.width, model.vocab_size, model.init_std
    rows = [_matrix(model, "embed.weight", (V, D), 1, std, "embedding")]
    for layer in range(model.layers):
        rows += _block(model, layer, f"blocks.{layer}.")
    if not model.tied_embedding:
        rows.append(_matrix(model, "head.weight", (V, D), 1, std, "head"))
    if model.is_ngpt:
        rows += _scale("s_z", V, model.scale_at("s_z", 0))
    else:
        rows.append(_vector("final_norm.gain.value", D, None, 1.0))
    return tuple(rows)


@lru_cache(maxsize=4)
def parameter_count(model: ModelConfig) -> int:
    """Elements of all parameters of a model."""
    return sum(math.prod(spec.shape) for spec in _rows(model))


def _block(model: ModelConfig, layer: int, at: str) -> list[ParameterSpec]:
    """One transformer block, nGPT or GPT."""
    D, F = model.width, model.ffn_width
    rows = [
        *_attention(model, at + "attention."),
        _inward(model, at + "mlp.up.weight", F),
        *([_inward(model, at + "mlp.gate.weight", F)] if model.is_gated else ()),
        _outward(model, at + "mlp.down.weight", F),
    ]
    if model.scales_qk:
        s_qk = model.scale_at("s_qk", layer)
        rows += _scale(at + "attention.s_qk", model.s_qk_width, s_qk)
    if not model.is_ngpt:
        norms = ("attention_residual.norm.gain.value", "mlp_residual.norm.gain.value")
        return rows + [_vector(at + name, D, None, 1.0) for name in norms]
    s_uv = model.scale_at("s_uv", layer)
    return [
        *rows,
        *_scale(at + "mlp.s_u", F, s_uv),
        *(_scale(at + "mlp.s_v", F, s_uv) if model.is_gated else ()),
        *_scale(at + "attention_residual.alpha", D, model.scale_at("alpha_attention", layer), None),
        *_scale(at + "mlp_residual.alpha", D, model.scale_at("alpha_mlp", layer), None),
    ]


def _scale(name: str, width: int, scale: LayerScale, tp_dim: int | None = 0) -> list[ParameterSpec]:
    """The stored part of a scaling vector: all of it, one number, or nothing."""
    size = scale.size(width)
    split = None if scale.shared else tp_dim
    return [_vector(f"{name}.value", size, split, scale.scale)] if size else []


def _attention(model: ModelConfig, at: str) -> list[ParameterSpec]:
    """Matrices of attention, and what its kind adds to them."""
    rows = [
        _inward(model, at + "query.weight", model.query_width),
        _inward(model, at + "key.weight", model.key_width),
        _inward(model, at + "value.weight", model.value_width),
        _outward(model, at + "output.weight", model.output_width),
    ]
    if model.attention == "standard":
        return rows
    if model.attention == "differential":
        mix = [
            ParameterSpec(f"{at}mix.{name}", (model.map_dim,), None, None, "vector", std=0.1)
            for name in ("query_1", "key_1", "query_2", "key_2")
        ]
    else:
        start = ensemble_start(model.maps)
        mix = [
            ParameterSpec(at + "mix.weight", (model.maps,), None, None, "vector", values=start),
            _vector(at + "mix.scale", 1, None, 1.0),
        ]
    return [*rows, *mix, _vector(at + "head_norm.gain.value", model.head_dim, None, 1.0)]


def ensemble_start(maps: int) -> tuple[float, ...]:
    """Initial weights of an ensemble's maps: 0.1, -0.1, 0.1, ...

    Of an even number of maps the first is 0.2: the first token sees itself alone in every map, and
    weights that cancel would leave it an output of 0, which has no direction.
    """
    first = 0.1 if maps % 2 else 0.2
    return (first, *(0.1 * (-1) ** number for number in range(1, maps)))


def _inward(model: ModelConfig, name: str, outputs: int) -> ParameterSpec:
    """Matrix that reads the hidden state: rows are unit vectors, tp splits rows."""
    return _matrix(model, name, (outputs, model.width), 1, model.init_std)


def _outward(model: ModelConfig, name: str, inputs: int) -> ParameterSpec:
    """Matrix that writes the hidden state: columns are unit vectors, tp splits columns."""
    std = model.init_std / (2 * model.layers) ** 0.5  # GPT-2's scaled residual initialisation
    return _matrix(model, name, (model.width, inputs), 0, std)


def _matrix(
    model: ModelConfig,
    name: str,
    shape: tuple[int, int],
    axis: int,
    std: float,
    group: Group = "matrix",
) -> ParameterSpec:
    """A matrix whose dimension ``axis`` is the embedding; tp splits the other one."""
    return ParameterSpec(
        name,
        shape,
        norm_dim=axis if model.is_ngpt else None,
        tp_dim=1 - axis,
        group=group,
        groups=model.hyperspheres,
        slack=model.sphere_slack,
        std=std,
    )


def _vector(name: str, size: int, tp_dim: int | None, value: float) -> ParameterSpec:
    return ParameterSpec(name, (size,), None, tp_dim, "vector", constant=value)
