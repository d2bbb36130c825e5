"""Feed-forward of nGPT and of the GPT baseline: SwiGLU, or squared ReLU without a gate."""

from __future__ import annotations

from torch import Tensor, nn

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.ops.activation import squared_relu, swiglu
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.hypersphere import Scale
from megatron_ngpt.ops.linear import Linear


class SwiGLU(nn.Module):
    """``down(u * silu(v))``; nGPT scales u by s_u and v by s_v sqrt(D) (eq. 20, 21).

    NVIDIA/ngpt also multiplies u by sqrt(D); the output is normalised right after, so a constant
    factor on u changes nothing.
    """

    def __init__(self, model: ModelConfig, layer: int, ops: Operations = REFERENCE) -> None:
        super().__init__()
        D, inner, s_uv = model.width, model.ffn_width, model.scale_at("s_uv", layer)
        part, self.ops = 1 / model.hyperspheres, ops
        self.up = Linear(D, inner, part)
        self.gate = Linear(D, inner, part)
        self.down = Linear(inner, D, part)
        self.s_u = Scale(inner, *s_uv) if model.is_ngpt else None
        self.s_v = Scale(inner, *s_uv) if model.is_ngpt else None
        self.gate_factor = D**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        u, v = self.up(x), self.gate(x)
        if self.s_u is None or self.s_v is None:
            return self.down(swiglu(u, v, ops=self.ops))
        return self.down(swiglu(u, v, self.s_u(), self.s_v() * self.gate_factor, self.ops))


class SquaredReLU(nn.Module):
    """``down(relu(u)^2)`` (arXiv 2109.08668); nGPT scales u by s_u sqrt(D).

    Source: the NGPT port of transformers PR 38276, where s_u is called suv. The factor sqrt(D)
    matters to the epsilon of the norm that follows, and to nothing else.
    """

    def __init__(self, model: ModelConfig, layer: int, ops: Operations = REFERENCE) -> None:
        super().__init__()
        D, inner, s_uv = model.width, model.ffn_width, model.scale_at("s_uv", layer)
        part, self.ops = 1 / model.hyperspheres, ops
        self.up = Linear(D, inner, part)
        self.down = Linear(inner, D, part)
        self.s_u = Scale(inner, *s_uv) if model.is_ngpt else None
        self.factor = D**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        s_u = None if self.s_u is None else self.s_u() * self.factor
        return self.down(squared_relu(self.up(x), s_u, self.ops))


def build_mlp(model: ModelConfig, layer: int, ops: Operations) -> nn.Module:
    """The feed-forward of block ``layer`` that ``model.mlp`` names."""
    return (SwiGLU if model.is_gated else SquaredReLU)(model, layer, ops)
