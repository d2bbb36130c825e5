"""What of the model a module holds: arithmetic, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Which layers of the model a module holds; pipeline stages hold some, one device all."""

    layers: range
    """Numbers of its blocks."""

    first: bool = True
    """Whether it embeds tokens."""

    last: bool = True
    """Whether it predicts them."""
