"""Which piece of a parameter a rank's model holds, from the parameter table alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.spec import ParameterSpec

VOCAB_UNIT = 128
"""A tp rank's rows of the vocabulary are padded to a multiple of this, which keeps matrix products
fast. Padding rows are zero, take no part in the loss and are in no checkpoint."""


@dataclass(frozen=True)
class Shard:
    """A box inside an unsharded parameter."""

    shape: tuple[int, ...]
    """Extent of the box as the rank's model holds it."""

    origin: tuple[int, ...]
    """Index of its first element in the unsharded parameter."""

    real: tuple[int, ...]
    """Extent less the padding at the end of dimension 0."""

    replicated: bool
    """Whether every tensor-parallel rank holds the same box."""


def local_model(model: ModelConfig, tp: int) -> ModelConfig:
    """The model of one tensor-parallel rank: the same layers, 1 / tp as wide inside.

    Raises:
        ValueError: tp does not divide heads, kv_heads or ffn_width.
    """
    if tp == 1:
        return model
    for name in ("heads", "kv_heads", "ffn_width"):
        value = getattr(model, name)
        if value % tp:
            raise ValueError(
                f"parallel.tp = {tp} does not divide model.{name} = {value}: choose a tp that does"
            )
    return replace(
        model,
        heads=model.heads // tp,
        kv_heads=model.kv_heads // tp,
        ffn_width=model.ffn_width // tp,
        vocab_size=local_rows(model.vocab_size, tp),
    )


def local_rows(vocab_size: int, tp: int) -> int:
    """Rows of the vocabulary on one tensor-parallel rank, padding included."""
    return vocab_size if tp == 1 else -(-vocab_size // (tp * VOCAB_UNIT)) * VOCAB_UNIT


def local_shard(spec: ParameterSpec, degrees: Degrees, tp_index: int) -> Shard:
    """The tensor-parallel piece of a parameter: slices of ``tp_dim``, all of it without one."""
    shape, origin, real = list(spec.shape), [0] * len(spec.shape), list(spec.shape)
    split = spec.tp_dim is not None and degrees.tp > 1
    if split and spec.tp_dim is not None:
        size = spec.shape[spec.tp_dim]
        mine = local_rows(size, degrees.tp) if spec.over_vocab else size // degrees.tp
        first = min(tp_index * mine, size)
        shape[spec.tp_dim], origin[spec.tp_dim] = mine, first
        real[spec.tp_dim] = min(mine, size - first)
    return Shard(tuple(shape), tuple(origin), tuple(real), not split)
