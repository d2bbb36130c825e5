"""The kinds of attention of nGPT and GPT for Hugging Face transformers.

Shapes: B batch, T tokens, S tokens of keys, D width, N query heads, K key heads, H head width. A
head has M softmax maps, each with queries and keys of its own, J wide, that share its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_ngpt import NGPTConfig
from .rotary_ngpt import for_both, rotary_parameters, rotate
from .sphere_ngpt import NGPTRMSNorm, effective, on_sphere, scaling_column, shared_out


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention that returns its weights too: [B, T, N M, H] and [B, N M, T, S]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class NGPTAttention(nn.Module):
    """Standard attention; in nGPT queries and keys are unit vectors and sqk squared scales queries.

    Other kinds override :meth:`spread` and :meth:`joined`.
    """

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__()
        D, H, J, bias = config.hidden_size, config.head_dim, config.map_dim, config.attention_bias
        heads, kv_heads, maps = (
            config.num_attention_heads, config.num_key_value_heads, config.attention_maps
        )  # fmt: skip
        self.config, self.layer_idx, self.head_dim, self.map_dim = config, layer_idx, H, J
        self.maps, self.num_key_value_groups = maps, heads // kv_heads
        # of unit vectors, whose products are of order 1 / sqrt(J)
        self.scaling = J ** (0.5 if config.scales_qk else -0.5)
        self.scaling *= rotary_parameters(config)[1] ** 2
        self.attention_dropout, self.is_causal = config.attention_dropout, True
        self.q_proj = nn.Linear(D, heads * maps * J, bias=bias)
        self.k_proj = nn.Linear(D, kv_heads * maps * J, bias=bias)
        self.v_proj = nn.Linear(D, kv_heads * H, bias=bias)
        self.o_proj = nn.Linear(heads * H, D, bias=bias)
        self.normed = on_sphere(config) if config.scales_qk and config.qk_norm else None
        if config.scales_qk:
            values = heads * maps * (J - config.paired_dim // 2)
            scaling = config.scaling("sqk", values, layer_idx)
            self.sqk, self.sqk_factor = scaling_column(scaling), scaling.factor

    def forward(
        self,
        hidden_states: Tensor,
        first_values: Tensor | None = None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """[B, T, D] -> [B, T, D], attention weights if there are any, values of the first layer.

        Args:
            hidden_states: [B, T, D].
            first_values: [B, K, T, H], for a value residual; None in the first layer.
            position_embeddings: cosines and sines [B, T, R / 2].
            attention_mask: as the implementation of attention wants it.
            past_key_values: cache of the keys and values before.
            kwargs: for the implementation of attention.
        """
        x = shared_out(hidden_states, self.config.num_hyperspheres)
        q, k = (
            linear(x).unflatten(-1, (-1, self.map_dim)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj)
        )
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        first_values = v if first_values is None else first_values
        if self.config.value_residual:
            v = 0.5 * (v + first_values)
        q, k = self.turned(q, position_embeddings), self.turned(k, position_embeddings)
        q, k = self.scaled(q).to(v.dtype), k.to(v.dtype)
        if past_key_values is not None:
            k, v = self.extended(past_key_values, k, v)
        q, k, v = self.spread(q, k, v)
        # vLLM looks for this call in this very method, and its attention returns [T, features]
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(
            self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        out = out.reshape(*hidden_states.shape[:-1], -1, self.head_dim)
        out, weights = self.joined(out, weights)
        out = shared_out(out.flatten(2), self.config.num_hyperspheres)
        return self.o_proj(out), weights, first_values

    def turned(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys [B, heads, T, J], rotated and, in nGPT, normalised; fp32."""
        x = rotate(x, *position_embeddings, self.config.rope_interleaved)
        return x if self.normed is None else self.normed(x)

    def scaled(self, q: Tensor) -> Tensor:
        """Queries times sqk squared, in nGPT."""
        config = self.config
        if not config.scales_qk:
            return q
        scale = effective(self.sqk, self.sqk_factor).square()
        if scale.numel() == 1:
            return q * scale
        scale = scale.view(-1, 1, self.map_dim - config.paired_dim // 2)
        return q * for_both(scale, config.paired_dim, config.rope_interleaved)

    def extended(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, K M, S, J] and values [B, K, S, H] of all tokens.

        Caches want as many key as value heads: the maps of a head lie side by side there.
        """
        if self.maps == 1:
            return cache.update(k, v, self.layer_idx)
        k = k.unflatten(1, (-1, self.maps)).transpose(2, 3).flatten(3)
        k, v = cache.update(k, v, self.layer_idx)
        return k.unflatten(-1, (self.maps, -1)).transpose(2, 3).flatten(1, 2), v

    def spread(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, N M, T, H], keys and values [B, K M, S, H] of one call for all maps."""
        return q, k, v

    def joined(self, out: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What that call gives for N M heads, [B, T, N M, H] and perhaps weights, for N heads."""
        return out, weights


class NGPTMixedAttention(NGPTAttention):
    """``RMSNorm(sum_m w_m softmax(q_m k_m) v)`` in every head, token by token.

    All maps go through one call of the implementation as heads of their own, queries and keys
    padded to the width of the values, which fused kernels want.
    """

    after_norm = 1.0
    """Constant factor of the normed output."""

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.subln = NGPTRMSNorm(self.head_dim, config.head_norm_eps)

    def spread(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys padded to the width of the values, values once for each map."""
        missing = (0, self.head_dim - self.map_dim)
        return F.pad(q, missing), F.pad(k, missing), v.repeat_interleave(self.maps, 1)

    def joined(self, out: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The normed sum over maps; a head's attention weights are the sum of its maps'."""
        if weights is not None:
            weights = self.mixed(weights.transpose(1, 2)).transpose(1, 2)
        return (self.subln(self.mixed(out)) * self.after_norm).to(out.dtype), weights

    def mixed(self, y: Tensor) -> Tensor:
        """[B, T, N M, H] -> the weighted sum over maps [B, T, N, H], fp32."""
        return (self.by_map(y).float() * self.map_weights()[:, None]).sum(-2)

    def init_weights(self) -> None:
        """Where what decides the weights of the maps starts."""
        raise NotImplementedError

    def by_map(self, y: Tensor) -> Tensor:
        """[B, T, N M, H] as the implementation returns it -> [B, T, N, M, H]."""
        raise NotImplementedError

    def map_weights(self) -> Tensor:
        """Fp32 [M]."""
        raise NotImplementedError


class NGPTDifferentialAttention(NGPTMixedAttention):
    """The difference of two maps (arXiv 2410.05258), names as in microsoft/unilm.

    Query head 2 n + m is map m of head n; the 2 N query heads share the 2 K key heads in order.
    """

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer_idx)
        self.after_norm = 1 - self.lambda_init
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.zeros(self.map_dim)) for _ in range(4)
        )

    def init_weights(self) -> None:
        """Normal with standard deviation 0.1."""
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            init.normal_(vector, mean=0.0, std=0.1)

    def map_weights(self) -> Tensor:
        """``(1, -lambda)``, ``lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init``."""
        first = (self.lambda_q1.float() @ self.lambda_k1.float()).exp()
        second = (self.lambda_q2.float() @ self.lambda_k2.float()).exp()
        balance = first - second + self.lambda_init
        return torch.stack((torch.ones_like(balance), -balance))

    def by_map(self, y: Tensor) -> Tensor:
        """[B, T, N M, H] -> [B, T, N, M, H]."""
        return y.unflatten(2, (-1, self.maps))


class NGPTEnsembleAttention(NGPTMixedAttention):
    """A learned sum of M maps (Linear Ensemble nGPT); query heads lie as [K, M, N / K]."""

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.map_weight = nn.Parameter(torch.zeros(self.maps))
        self.map_scale = nn.Parameter(torch.ones(1))

    def init_weights(self) -> None:
        """0.1, -0.1, ...; weights that cancel would leave the first token nothing."""
        start = torch.tensor([0.1, -0.1]).repeat(self.maps)[: self.maps]
        start[0] = 0.1 if self.maps % 2 else 0.2
        init.copy_(self.map_weight, start)
        init.ones_(self.map_scale)

    def map_weights(self) -> Tensor:
        """``tanh(map_weight) * map_scale``."""
        return self.map_weight.float().tanh() * self.map_scale.float()

    def by_map(self, y: Tensor) -> Tensor:
        """[B, T, N M, H] -> [B, T, N, M, H]."""
        by_key = y.unflatten(2, (-1, self.maps, self.num_key_value_groups))
        return by_key.transpose(3, 4).flatten(2, 3)


ATTENTION = {
    "standard": NGPTAttention,
    "differential": NGPTDifferentialAttention,
    "ensemble": NGPTEnsembleAttention,
}
"""Classes by ``attention_kind``."""
