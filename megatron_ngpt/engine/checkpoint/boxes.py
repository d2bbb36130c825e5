"""A rank's pieces of tensors, as checkpoints know them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Boxes:
    """What one rank holds of one tensor: disjoint boxes, possibly none."""

    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    parts: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    """First index of a box -> its values, shaped like the box."""
