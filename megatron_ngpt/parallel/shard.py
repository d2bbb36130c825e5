"""Which piece of a parameter a rank's model holds, from the parameter table alone."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.spec import ParameterSpec


@dataclass(frozen=True)
class Shard:
    """A box inside an unsharded parameter."""

    shape: tuple[int, ...]
    """Extent of the box."""

    origin: tuple[int, ...]
    """Index of its first element in the unsharded parameter."""


def local_shard(spec: ParameterSpec, degrees: Degrees, tp_index: int) -> Shard:
    """The tensor-parallel piece of a parameter: equal slices of ``tp_dim``, all of it without one.

    Raises:
        ValueError: tp does not divide the dimension.
    """
    shape, origin = list(spec.shape), [0] * len(spec.shape)
    if spec.tp_dim is not None and degrees.tp > 1:
        size = shape[spec.tp_dim]
        if size % degrees.tp:
            raise ValueError(
                f"parallel.tp = {degrees.tp} does not divide dimension {spec.tp_dim} of "
                f"{spec.name}, which is {size}: lower parallel.tp or change the model's shape"
            )
        shape[spec.tp_dim] = size // degrees.tp
        origin[spec.tp_dim] = tp_index * shape[spec.tp_dim]
    return Shard(tuple(shape), tuple(origin))
