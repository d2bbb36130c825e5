"""The loss of every single token, on any topology."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.ops.loss import Loss
from megatron_ngpt.parallel.context import gather_sequences, shared_inputs


@torch.no_grad()
def token_losses(engine: Engine, tokens: Tensor, targets: Tensor) -> Tensor | None:
    """Loss of each target in nats, and whether it is the model's first choice: fp32 [2, B, T].

    With ``train.loss_chunk`` no more logits are in memory than in training. Collective over the
    ranks that hold one copy of the model.

    Args:
        engine: its weights are used as they are.
        tokens: whole sequences [B, T], T a multiple of ``parallel.sequence_unit``.
        targets: the ids that follow, or ``IGNORED``, which has loss 0.

    Returns:
        None on pipeline ranks without the last stage.
    """
    engine.deepspeed.eval()
    inputs = shared_inputs(engine.config, engine.mesh, tokens, targets)
    last = next((part for part in engine.deepspeed.module.parts if part.part.last), None)
    if last is None:
        engine.forward(inputs)
        return None
    with _Recorded(last) as recorded:
        engine.forward(inputs)
    whole = gather_sequences(recorded.whole(inputs.tokens.shape).movedim(0, -1), engine.mesh)
    return whole.movedim(-1, 0)


class _Recorded:
    """A part whose loss, while inside, also notes every token's."""

    def __init__(self, part: NGPT) -> None:
        self.part, self.loss = part, part.loss
        self.pieces: list[Tensor] = []

    def __enter__(self) -> _Recorded:
        loss: Loss = self._note
        self.part.loss = loss
        return self

    def __exit__(self, *_: object) -> None:
        self.part.loss = self.loss

    def _note(self, logits: Tensor, targets: Tensor, /, *, each: bool = False) -> Tensor:
        found = self.loss(logits, targets, each=True)
        # a chunk of the loss holds as many tokens of each rank that shares the hidden states
        self.pieces.append(found.unflatten(-1, (self.part.sequence_shards, -1)))
        return found[0].mean()

    def whole(self, shape: torch.Size) -> Tensor:
        """[2, B, T] of all pieces, in the order of the tokens."""
        return torch.cat(self.pieces, dim=-1).reshape(2, *shape)
