"""Logits whose gradient does not grow with their scale."""

from __future__ import annotations

from torch import Tensor


def precondition(scale: Tensor, mean: Tensor) -> Tensor:
    """What takes the scale's place in the gradient of the cosines u that become ``scale * u``.

    dL/du = scale / mean * dL/dz instead of scale * dL/dz; the scale's own gradient is the usual
    one. Source: arXiv 2608.01284v2, with q = 1.

    Args:
        scale: s_z, fp32 [V], or one for all.
        mean: of s_z over the whole vocabulary, a scalar.
    """
    return scale / mean
