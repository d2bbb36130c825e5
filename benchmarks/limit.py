"""What a step cannot go without: its matrix products and its attention, run bare.

The products are those of the parameter table, each in its three forms (output, gradient of the
input, gradient of the weight) on buffers made before; attention is our kernel, forward and
backward. As contestants they take turns with the steps, so a share of the limit is a quotient of
one round.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.shape import Shape
from megatron_ngpt.config import ModelConfig
from megatron_ngpt.engine.engine import DTYPES
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import pick_attention


class Products:
    """All matrix products of one step; a call does them once."""

    def __init__(self, model: ModelConfig, tokens: int, dtype: str, device: torch.device) -> None:
        self.device, self.dtype = device, DTYPES[dtype]
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
    """Attention of every layer, forward and backward; a call does it once."""

    def __init__(self, shape: Shape, model: ModelConfig, dtype: str, device: torch.device) -> None:
        self.attend = pick_attention("auto", device, DTYPES[dtype])
        self.layers, self.scale = model.layers, math.sqrt(model.head_dim)
        widths = (model.query_width, model.key_width, model.value_width)
        self.qkv = [
            torch.nn.functional.normalize(
                torch.randn(shape.micro_batch, shape.seq_len, w // model.head_dim, model.head_dim),
                dim=-1,
            )
            .to(device, DTYPES[dtype])
            .requires_grad_()
            for w in widths
        ]

    def __call__(self) -> None:
        """One layer after the other."""
        for _ in range(self.layers):
            q, k, v = self.qkv
            out = self.attend(q, k, v, self.scale)
            torch.autograd.grad(out, self.qkv, torch.ones_like(out))
