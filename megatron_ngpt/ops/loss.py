"""Next-token cross-entropy."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.ops.documents import IGNORED


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats, computed in fp32.

    Args:
        logits: [B, T, V].
        targets: next-token ids [B, T]; one that is ``IGNORED`` adds nothing but counts in the mean,
            so that means of equal shares of a batch average to that of the batch.
    """
    total = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / targets.numel()
