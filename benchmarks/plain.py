"""nGPT as one writes it down: torch's attention, every intermediate kept, all logits at once.

What long sequences are measured against. Source: arXiv 2410.01131, section 2; parameters have our
names, so that both compute the same from the same weights. Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.ops.hypersphere import Scale
from megatron_ngpt.ops.rope import rotary_table, rotate


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Vectors of length 1."""
    return F.normalize(x.float(), dim=dim, eps=1e-12).to(x.dtype)


class PlainAttention(nn.Module):
    """Section 2.3."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        D, self.head_dim = model.width, model.head_dim
        self.query = nn.Linear(D, model.query_width, bias=False)
        self.key = nn.Linear(D, model.key_width, bias=False)
        self.value = nn.Linear(D, model.value_width, bias=False)
        self.output = nn.Linear(model.output_width, D, bias=False)
        self.s_qk = Scale(model.query_width, *model.scale_at("s_qk", 0))

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim))
            for y in (self.query(x), self.key(x), self.value(x))
        )
        q, k = (unit(rotate(y, rotary, "interleaved")).to(x.dtype) for y in (q, k))
        q = (q * self.s_qk().square().unflatten(0, (-1, self.head_dim))).to(v.dtype)
        q, k, v = (y.transpose(1, 2) for y in (q, k.to(v.dtype), v))
        found = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.head_dim**0.5, enable_gqa=q.shape[1] != k.shape[1]
        )
        return self.output(found.transpose(1, 2).flatten(2))


class PlainMLP(nn.Module):
    """Section 2.4."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        D, inner = model.width, model.ffn_width
        self.up = nn.Linear(D, inner, bias=False)
        self.gate = nn.Linear(D, inner, bias=False)
        self.down = nn.Linear(inner, D, bias=False)
        self.s_u = Scale(inner, *model.scale_at("s_uv", 0))
        self.s_v = Scale(inner, *model.scale_at("s_uv", 0))
        self.factor = D**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        u, v = self.up(x) * self.s_u(), self.gate(x) * (self.s_v() * self.factor)
        return self.down(u * F.silu(v))


class PlainResidual(nn.Module):
    """Section 2.2."""

    def __init__(self, model: ModelConfig, name: str) -> None:
        super().__init__()
        self.alpha = Scale(model.width, *model.scale_at(name, 0))

    def forward(self, h: Tensor, branch: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h = unit(h)
        return unit(h + self.alpha().abs() * (unit(branch) - h))


class PlainBlock(nn.Module):
    """Attention, then MLP."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.attention, self.mlp = PlainAttention(model), PlainMLP(model)
        self.attention_residual = PlainResidual(model, "alpha_attention")
        self.mlp_residual = PlainResidual(model, "alpha_mlp")

    def forward(self, h: Tensor, rotary: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h = self.attention_residual(h, self.attention(h, rotary))
        return self.mlp_residual(h, self.mlp(h))


class PlainNGPT(nn.Module):
    """Standard attention, SwiGLU, untied head; values come from a state dict of our model."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.config = model
        self.embed = nn.Embedding(model.vocab_size, model.width)
        self.blocks = nn.ModuleDict({str(n): PlainBlock(model) for n in range(model.layers)})
        self.head = nn.Linear(model.width, model.vocab_size, bias=False)
        self.s_z = Scale(model.vocab_size, *model.scale_at("s_z", 0))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Token ids and the ids that follow, [B, T] -> mean loss."""
        h = self.embed(tokens)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        rotary = rotary_table(places, self.config.head_dim, self.config.rope_theta)
        for block in self.blocks.values():
            h = block(h, rotary)
        logits = self.head(h).float() * self.s_z()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def normalize(self) -> None:
        """Every vector of every matrix back to the sphere, after each step (section 2.6)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                inward = name.endswith(("attention.output.weight", "mlp.down.weight"))
                parameter.copy_(unit(parameter, 0 if inward else 1))


def plain_step(model: PlainNGPT, bf16: bool) -> Callable[[Tensor], float]:
    """A training step on token ids [B, T + 1]: autocast, clipping, fused AdamW, projection."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def step(batch: Tensor) -> float:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=bf16):
            loss: Tensor = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.normalize()
        return float(loss.detach())

    return step
