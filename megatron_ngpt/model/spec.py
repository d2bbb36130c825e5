"""The parameter table: what every parameter is, for everything that is not the model's maths.

Sharding, the projection onto the sphere, the optimizer's groups, initial values and checkpoints all
read this table; none of them knows the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from megatron_ngpt.config import ModelConfig

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

    std: float = 0.0
    """Standard deviation of the initial values; 0 for a constant."""

    constant: float = 0.0
    """Initial value when std is 0."""

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
    D, V, std = model.width, model.vocab_size, model.init_std
    norm_dim = 1 if model.is_ngpt else None
    rows = [ParameterSpec("embed.weight", (V, D), norm_dim, 0, "embedding", std)]
    for layer in range(model.layers):
        rows += _block(model, f"blocks.{layer}.")
    rows.append(ParameterSpec("head.weight", (V, D), norm_dim, 0, "head", std))
    if model.is_ngpt:
        rows.append(_vector("s_z.value", V, 0, model.s_z.scale))
    else:
        rows.append(_vector("final_norm.gain.value", D, None, 1.0))
    return {row.name: row for row in rows}


def parameter_count(model: ModelConfig) -> int:
    """Elements of all parameters of a model."""
    return sum(math.prod(spec.shape) for spec in parameter_table(model).values())


def _block(model: ModelConfig, at: str) -> list[ParameterSpec]:
    """One transformer block, nGPT or GPT."""
    D, F = model.width, model.ffn_width
    N, K = model.heads * model.head_dim, model.kv_heads * model.head_dim
    rows = [
        _inward(model, at + "attention.query.weight", N),
        _inward(model, at + "attention.key.weight", K),
        _inward(model, at + "attention.value.weight", K),
        _outward(model, at + "attention.output.weight", N),
        _inward(model, at + "mlp.up.weight", F),
        *([_inward(model, at + "mlp.gate.weight", F)] if model.is_gated else ()),
        _outward(model, at + "mlp.down.weight", F),
    ]
    if not model.is_ngpt:
        norms = ("attention_residual.norm.gain.value", "mlp_residual.norm.gain.value")
        return rows + [_vector(at + name, D, None, 1.0) for name in norms]
    return [
        *rows,
        _vector(at + "attention.s_qk.value", N, 0, model.s_qk.scale),
        _vector(at + "mlp.s_u.value", F, 0, model.s_uv.scale),
        *([_vector(at + "mlp.s_v.value", F, 0, model.s_uv.scale)] if model.is_gated else ()),
        _vector(at + "attention_residual.alpha.value", D, None, model.alpha_attention.scale),
        _vector(at + "mlp_residual.alpha.value", D, None, model.alpha_mlp.scale),
    ]


def _inward(model: ModelConfig, name: str, outputs: int) -> ParameterSpec:
    """Matrix that reads the hidden state: rows are unit vectors, tp splits rows."""
    norm_dim = 1 if model.is_ngpt else None
    return ParameterSpec(name, (outputs, model.width), norm_dim, 0, "matrix", model.init_std)


def _outward(model: ModelConfig, name: str, inputs: int) -> ParameterSpec:
    """Matrix that writes the hidden state: columns are unit vectors, tp splits columns."""
    norm_dim = 0 if model.is_ngpt else None
    std = model.init_std / (2 * model.layers) ** 0.5  # GPT-2's scaled residual initialisation
    return ParameterSpec(name, (model.width, inputs), norm_dim, 1, "matrix", std)


def _vector(name: str, size: int, tp_dim: int | None, value: float) -> ParameterSpec:
    return ParameterSpec(name, (size,), None, tp_dim, "vector", constant=value)
