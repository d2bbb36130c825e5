"""Under which name a parameter's figures are told: its kind, the same in every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.config.model import LayerScale
from megatron_ngpt.model.spec import ParameterSpec

SCALES = {
    "attention_residual.alpha": ("alpha_attention", "alpha_attention"),
    "mlp_residual.alpha": ("alpha_mlp", "alpha_mlp"),
    "attention.s_qk": ("s_qk", "s_qk"),
    "mlp.s_u": ("s_u", "s_uv"),
    "mlp.s_v": ("s_v", "s_uv"),
    "s_z": ("s_z", "s_z"),
}
"""Kind of a scaling vector -> its name in the records, its section in the configuration."""


def kind_of(name: str) -> tuple[str, int]:
    """Name of a parameter less its layer and its last word, and the layer; 0 outside of layers.

    ``blocks.3.attention.query.weight`` is ``("attention.query", 3)``.
    """
    words = name.split(".")[:-1]
    if words[0] == "blocks":
        return ".".join(words[2:]), int(words[1])
    return ".".join(words), 0


def kinds(names: Iterable[str]) -> list[str]:
    """The kinds of some parameters, in their order."""
    return list(dict.fromkeys(kind_of(name)[0] for name in names))


def matrices(table: Mapping[str, ParameterSpec]) -> list[str]:
    """Names of all matrices, in the table's order."""
    return [name for name, spec in table.items() if len(spec.shape) == 2]


def scale_of(model: ModelConfig, kind: str, layer: int) -> LayerScale:
    """The scaling vector of a kind in :data:`SCALES` in one layer."""
    return model.scale_at(SCALES[kind][1], layer)


def by_layer(values: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """Values by parameter as a list over layers for each kind, five digits each."""
    found: dict[str, list[float]] = {}
    for name, value in values:
        found.setdefault(kind_of(name)[0], []).append(digits(value))
    return found


def digits(value: float) -> float:
    """Rounded to five significant digits, which is what a file is worth."""
    return float(f"{value:.5g}")
