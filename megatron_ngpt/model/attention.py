"""Multi-head attention of nGPT and of the GPT baseline; grouped-query and multi-query included.

Shapes: B batch, T tokens, D width, N query heads, K key heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.hypersphere import Scale
from megatron_ngpt.ops.linear import Linear
from megatron_ngpt.ops.qk_norm import rotary_qk_norm
from megatron_ngpt.ops.rope import Scaling, rotate


@dataclass
class KeyValueCache:
    """Keys and values of the tokens seen so far, [B, S, K, H]; grows with every call."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values and return all of them."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=1)
            values = torch.cat((self.values, values), dim=1)
        self.keys, self.values = keys, values
        return keys, values


def rope_scaling(model: ModelConfig) -> Scaling:
    """How a model's rotary embedding is stretched."""
    return Scaling(model.rope_scaling, model.rope_factor, model.rope_original)


class Attention(nn.Module):
    """Causal self-attention; nGPT normalises every head's queries and keys and scales them.

    The paper multiplies queries and keys by the same s_qk (eq. 15, 16). Only the product enters the
    logits, so its square is applied to the queries: the same maths, and the only reading of it
    that grouped-query attention allows.
    """

    def __init__(self, model: ModelConfig, attend: Attend) -> None:
        super().__init__()
        D, self.head_dim = model.width, model.head_dim
        inner, inner_kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
        self.query = Linear(D, inner)
        self.key = Linear(D, inner_kv)
        self.value = Linear(D, inner_kv)
        self.output = Linear(inner, D)
        self.attend, self.rope_style = attend, model.rope_style
        self.s_qk = Scale(inner, model.s_qk.init, model.s_qk.scale) if model.is_ngpt else None
        # unit queries and keys have products of order 1/sqrt(H): the factor is inverted (eq. 17)
        self.scale = model.head_dim ** (0.5 if model.is_ngpt else -0.5)
        self.scale *= rope_scaling(model).temperature

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; rotary is the table of these T positions."""
        q_BTNH = self.query(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BTKH = self.key(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTKH = self.value(x_BTD).unflatten(-1, (-1, self.head_dim))
        if self.s_qk is None:
            q_BTNH, k_BTKH = (
                rotate(x, rotary, self.rope_style).to(x.dtype) for x in (q_BTNH, k_BTKH)
            )
        else:
            s_NH = self.s_qk().unflatten(0, (-1, self.head_dim))
            q_BTNH = rotary_qk_norm(q_BTNH, rotary, s_NH.square(), self.rope_style)
            k_BTKH = rotary_qk_norm(k_BTKH, rotary, style=self.rope_style)
        if cache is not None:
            k_BTKH, v_BTKH = cache.extend(k_BTKH, v_BTKH)
        y_BTNH = self.attend(q_BTNH, k_BTKH, v_BTKH, self.scale, documents)
        return self.output(y_BTNH.flatten(-2))
