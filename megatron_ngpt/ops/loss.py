"""Next-token cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats, computed in fp32.

    Args:
        logits: [B, T, V].
        targets: next-token ids [B, T].
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
