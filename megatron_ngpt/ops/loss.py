"""Next-token cross-entropy."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.config import IGNORED


class Loss(Protocol):
    """Loss of logits, whoever holds which columns of them."""

    def __call__(self, logits: Tensor, targets: Tensor, /, *, each: bool = False) -> Tensor:
        """Mean of :func:`cross_entropy`, or what :func:`each_token` returns, without gradients."""


def cross_entropy(logits: Tensor, targets: Tensor, /, *, each: bool = False) -> Tensor:
    """Mean negative log-likelihood in nats, computed in fp32.

    Args:
        logits: [B, T, V].
        targets: next-token ids [B, T]; one that is ``IGNORED`` adds nothing but counts in the mean,
            so that means of equal shares of a batch average to that of the batch.
        each: see :func:`each_token`.
    """
    flat, goal = logits.flatten(0, -2).float(), targets.flatten()
    if each:
        return each_token(flat, goal).view(2, *targets.shape)
    total = F.cross_entropy(flat, goal, ignore_index=IGNORED, reduction="sum")
    return total / targets.numel()


def each_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of every target in nats, and whether no logit is above the target's; fp32 [2, n].

    Args:
        logits: [n, V].
        targets: [n]; an ``IGNORED`` one has loss 0.
    """
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    own = logits.gather(1, targets.clamp_min(0)[:, None])[:, 0]
    return torch.stack((losses, (own >= logits.amax(-1)).float()))
