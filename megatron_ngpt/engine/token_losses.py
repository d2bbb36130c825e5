"""The loss of every single token, on any topology."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.parallel.context import gather_sequences, shared_inputs


@torch.no_grad()
def token_losses(engine: Engine, tokens: Tensor, targets: Tensor) -> Tensor | None:
    """Loss of each target in nats, and whether it is the model's first choice: fp32 [2, B, T].

    No more logits are in memory than in training. Collective over the ranks that hold one copy of
    the model.

    Args:
        engine: its weights are used as they are.
        tokens: whole sequences [B, T], T a multiple of ``parallel.sequence_unit``.
        targets: the ids that follow, or ``IGNORED``, which has loss 0.

    Returns:
        None on pipeline ranks without the last stage.
    """
    engine.deepspeed.eval()
    with _each_loss(engine):
        found = engine.forward(shared_inputs(engine.config, engine.mesh, tokens, targets))
    if found is None:
        return None
    return gather_sequences(found.movedim(0, -1), engine.mesh).movedim(-1, 0)


@contextmanager
def _each_loss(engine: Engine) -> Iterator[None]:
    """Inside, the model returns every token's loss in place of the mean."""
    parts = engine.deepspeed.module.parts
    for part in parts:
        part.each_loss = True
    try:
        yield
    finally:
        for part in parts:
            part.each_loss = False
