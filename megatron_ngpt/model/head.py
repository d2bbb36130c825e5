"""The matrix that predicts: logits for a look, or their loss without ever having all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ngpt.ops.fused import Operations
from megatron_ngpt.ops.linear import Linear
from megatron_ngpt.ops.loss import Columns, Logits, head_loss


class Head(Linear):
    """``x @ weight.T * factor``, or the loss of it.

    Its weight is used inside this module's forward alone, as ZeRO-3 wants, which gathers it there.

    Attributes that parallelism sets from outside:
        columns: which token ids its rows stand for.
        chunk: tokens of each sequence whose logits are in memory at a time; 0 for what suits.
    """

    def __init__(self, inputs: int, outputs: int, factor: float, ops: Operations) -> None:
        super().__init__(inputs, outputs, factor)
        self.ops, self.columns, self.chunk = ops, Columns(), 0

    def forward(
        self,
        x: Tensor,
        targets: Tensor | None = None,
        scale: Tensor | None = None,
        slope: Tensor | None = None,
        each: bool = False,
    ) -> Tensor:
        """Products [B, T, V] of x [B, T, D], or their loss; see ``ops.loss.head_loss``.

        Args:
            x: final hidden states.
            targets: [B, T], when it is the loss that is asked for.
            scale: s_z, fp32 [V] or one number.
            slope: in place of s_z in the gradient of x and the weight.
            each: every token's loss in place of the mean.
        """
        if targets is None:
            return super().forward(x)
        scale, slope = self._per_row(scale), self._per_row(slope)
        if self.factor != 1 and scale is None:
            scale = self._per_row(torch.ones((), device=x.device))
        rows = self.chunk * len(targets)
        head = Logits(self.weight, scale, slope, self.columns, rows, self.ops)
        return head_loss(x, targets, head, each)

    def _per_row(self, scale: Tensor | None) -> Tensor | None:
        if scale is None:
            return None
        scale = scale if self.factor == 1 else scale * self.factor
        return scale.to(self.weight.device).expand(self.weight.shape[0])
