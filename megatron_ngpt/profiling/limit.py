"""What a step cannot go without: its matrix products and its attention, run bare.

The products are those of the parameter table, each in its three forms (output, gradient of the
input, gradient of the weight) on buffers made before; attention is our kernel, forward and
backward. Run in turns with steps, they say how much of a step's time is its limit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import pick_attention


class Products:
    """All matrix products of one step on one device; a call does them once."""

    def __init__(
        self, model: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.device, self.dtype = device, dtype
        groups = ("matrix", "head", *(["embedding"] if model.tied_embedding else []))
        rows = [spec.shape for spec in parameter_table(model).values() if spec.group in groups]
        self.operations = sum(6 * tokens * math.prod(shape) for shape in rows)
        self.weights = [self._random(*shape) for shape in rows]
        widths = {width for shape in rows for width in shape}
        self.inputs = {width: self._random(tokens, width) for width in widths}
        self.outputs = {width: torch.empty_like(x) for width, x in self.inputs.items()}
        self.grads = {tuple(w.shape): torch.empty_like(w) for w in self.weights}

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    @torch.no_grad()
    def __call__(self) -> None:
        """Output = x W^T, then both gradients, weight by weight."""
        for weight in self.weights:
            wide, narrow = weight.shape
            x, grad = self.inputs[narrow], self.inputs[wide]
            torch.mm(x, weight.t(), out=self.outputs[wide])
            torch.mm(grad, weight, out=self.outputs[narrow])
            torch.mm(grad.t(), x, out=self.grads[wide, narrow])


class Attention:
    """Attention of every layer, forward and backward; a call does it once.

    Args:
        model: whose heads it has.
        batch: sequences.
        seq_len: tokens of each.
        dtype: of queries, keys and values.
        device: where.
    """

    def __init__(
        self,
        model: ModelConfig,
        batch: int,
        seq_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.attend = pick_attention("auto", device, dtype)
        self.layers, self.scale = model.layers, math.sqrt(model.head_dim)
        heads = (model.heads * model.maps, model.kv_heads * model.maps)
        self.q, self.k, self.v = (
            F.normalize(torch.randn(batch, seq_len, n, model.head_dim), dim=-1)
            .to(device, dtype)
            .requires_grad_()
            for n in (heads[0], heads[1], heads[1])
        )

    def __call__(self) -> None:
        """One layer after the other."""
        for _ in range(self.layers):
            out = self.attend(self.q, self.k, self.v, self.scale)
            torch.autograd.grad(out, (self.q, self.k, self.v), torch.ones_like(out))
