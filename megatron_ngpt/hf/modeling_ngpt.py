"""nGPT (arXiv 2410.01131) for Hugging Face transformers.

Parameter names and maths are those of NVIDIA's port (transformers PR 38276, head 0d276c3). Norms,
scales, rotation and residual steps are computed in fp32 whatever the dtype of the matrices, and
scaling vectors stay fp32. Shapes: B batch, T tokens, D width, N query heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ngpt import NGPTConfig


def unit(x: Tensor, eps: float = 0.0) -> Tensor:
    """Vectors along the last dimension brought to length 1, fp32; with eps to l / (l + eps).

    A zero vector stays zero.
    """
    x = x.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    return x / (length + eps if eps else length)


def residual_step(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """Move h towards branch on the sphere: ``unit(h + |alpha| (unit(branch) - h))``."""
    here = unit(h)
    return unit(here + alpha.abs() * (unit(branch, eps) - here)).to(h.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn pairs of the first dimensions of every head; fp32.

    Args:
        x: [B, N, T, H].
        cos, sin: [B, T, R / 2], R the number of dimensions that turn.
        interleaved: pairs are (2i, 2i + 1), not (i, i + R / 2).
    """
    turning, still = x.float().tensor_split([2 * cos.shape[-1]], dim=-1)
    shape, dim = ((-1, 2), -1) if interleaved else ((2, -1), -2)
    one, two = turning.unflatten(-1, shape).unbind(dim)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    turned = torch.stack((one * cos - two * sin, one * sin + two * cos), dim).flatten(-2)
    return torch.cat((turned, still), dim=-1) if still.shape[-1] else turned


def scaling_column(size: int, start: float) -> nn.Linear:
    """A scaling vector [size] as the port stores it, the only column of a Linear."""
    column = nn.Linear(1, size, bias=False)
    column.start = start  # type: ignore[assignment]
    return column


def effective(column: nn.Linear, factor: float) -> Tensor:
    """Effective value of a scaling vector, fp32 [size].

    The module is called, not its weight read, so that hooks of tensor parallelism see it.
    """
    weight = column.weight
    one = torch.ones((1, 1), dtype=weight.dtype, device=weight.device)
    vector: Tensor = column(one).flatten()
    return vector.float() * factor


def rotary_parameters(config: NGPTConfig) -> tuple[Tensor, float]:
    """Frequencies, and the factor on queries and keys that some scaled variants ask for."""
    plain = NGPTRotaryEmbedding.compute_default_rope_parameters
    fill = ROPE_INIT_FUNCTIONS.get(config.rope_parameters["rope_type"], plain)
    found: tuple[Tensor, float] = fill(config)
    return found


class NGPTRotaryEmbedding(nn.Module):
    """Cosine and sine of every position's angles; scaled variants are transformers' own.

    A factor on queries and keys would be normalised away: attention applies its square to logits.
    """

    inv_freq: Tensor
    original_inv_freq: Tensor

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = rotary_parameters(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(
        config: NGPTConfig, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, float]:
        """Frequencies theta^(-2i / R), and the factor 1 on cosine and sine."""
        rope = config.rope_parameters
        turning = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        pairs = torch.arange(0, turning, 2, dtype=torch.float32)
        return float(rope["rope_theta"]) ** (-pairs / turning), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, T] -> cosines and sines [B, T, R / 2], fp32."""
        angles = position_ids[..., None].float() * self.inv_freq.float().to(x.device)
        return angles.cos(), angles.sin()


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
    """Attention that returns its weights too: [B, T, N, H] and [B, N, T, S]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class NGPTAttention(nn.Module):
    """Queries and keys are unit vectors per head; sqk squared scales the queries alone."""

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__()
        D, H, bias = config.hidden_size, config.head_dim, config.attention_bias
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.config, self.layer_idx, self.head_dim = config, layer_idx, H
        self.num_key_value_groups = heads // kv_heads
        # of unit vectors, whose products are of order 1 / sqrt(H)
        self.scaling = H**0.5 * rotary_parameters(config)[1] ** 2
        self.attention_dropout, self.is_causal = config.attention_dropout, True
        self.q_proj = nn.Linear(D, heads * H, bias=bias)
        self.k_proj = nn.Linear(D, kv_heads * H, bias=bias)
        self.v_proj = nn.Linear(D, kv_heads * H, bias=bias)
        self.o_proj = nn.Linear(heads * H, D, bias=bias)
        start = _start(config, config.sqk_init_scaling)
        self.sqk, self.sqk_factor = scaling_column(heads * H, start), config.sqk_init_value / start

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, D] -> [B, T, D] and, if the implementation has them, attention weights."""
        linears = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            linear(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in linears
        )
        cos, sin = position_embeddings
        q, k = (unit(rotate(x, cos, sin, self.config.rope_interleaved)) for x in (q, k))
        scale = effective(self.sqk, self.sqk_factor).view(-1, 1, self.head_dim)
        q, k = (scale.square() * q).to(v.dtype), k.to(v.dtype)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.attention_dropout if self.training else 0.0
        out, weights = attend(
            self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.flatten(2)), weights


class NGPTMLP(nn.Module):
    """``down(act(suv sqrt(D) up(x)))``, or ``down(suv up(x) * act(suv_gate sqrt(D) gate(x)))``."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__()
        D, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.up_proj = nn.Linear(D, inner, bias=bias)
        self.down_proj = nn.Linear(inner, D, bias=bias)
        self.suv = scaling_column(inner, config.suv_init_scaling)
        self.gated = config.mlp_gated
        if self.gated:
            self.gate_proj = nn.Linear(D, inner, bias=bias)
            self.suv_gate = scaling_column(inner, config.suv_init_scaling)
        self.act_fn = ACT2FN[config.hidden_act]
        self.suv_factor = config.suv_init_value / config.suv_init_scaling
        self.act_factor = self.suv_factor * D**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        u = self.up_proj(x)
        if not self.gated:
            u = (u * effective(self.suv, self.act_factor)).to(x.dtype)
            return self.down_proj(self.act_fn(u))
        u = (u * effective(self.suv, self.suv_factor)).to(x.dtype)
        v = (self.gate_proj(x) * effective(self.suv_gate, self.act_factor)).to(x.dtype)
        return self.down_proj(u * self.act_fn(v))


class NGPTDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP, each a step on the sphere."""

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_size = D = config.hidden_size
        self.self_attn = NGPTAttention(config, layer_idx)
        self.mlp = NGPTMLP(config)
        self.attn_alpha = nn.Parameter(torch.empty(D))
        self.mlp_alpha = nn.Parameter(torch.empty(D))
        self.attn_alpha_start = _start(config, config.attn_alpha_init_scaling)
        self.mlp_alpha_start = _start(config, config.mlp_alpha_init_scaling)
        self.attn_alpha_factor = config.attn_alpha_init_value / self.attn_alpha_start
        self.mlp_alpha_factor = config.mlp_alpha_init_value / self.mlp_alpha_start
        self.mlp_norm_eps = config.mlp_norm_eps

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[B, T, D] -> [B, T, D], unit vectors."""
        h = hidden_states
        branch, _ = self.self_attn(h, **kwargs)
        h = residual_step(h, branch, self.attn_alpha.float() * self.attn_alpha_factor)
        alpha = self.mlp_alpha.float() * self.mlp_alpha_factor
        return residual_step(h, self.mlp(h), alpha, self.mlp_norm_eps)


def _start(config: NGPTConfig, scaling: float | None) -> float:
    return config.initializer_range if scaling is None else scaling


class NGPTPreTrainedModel(PreTrainedModel):
    """What all NGPT models share: initial values, and what transformers may do with them."""

    config: NGPTConfig
    config_class = NGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NGPTDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": NGPTDecoderLayer,
        "attentions": NGPTAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and hasattr(module, "start"):
            init.constant_(module.weight, float(module.start))  # type: ignore[arg-type]
        elif isinstance(module, NGPTDecoderLayer):
            init.constant_(module.attn_alpha, module.attn_alpha_start)
            init.constant_(module.mlp_alpha, module.mlp_alpha_start)

    @torch.no_grad()
    def normalize_matrices(self) -> None:
        """Project every matrix onto the sphere along the embedding axis.

        To be called once before and after every optimizer step of a fine-tuning (section 2.6, 1).
        """
        for name, weight in self.named_parameters():
            kind = name.split(".")[-2] if "." in name else ""
            if kind in ("o_proj", "down_proj"):
                weight.copy_(unit(weight.T).T)
            elif kind.endswith("_proj") or kind in ("embed_tokens", "lm_head"):
                weight.copy_(unit(weight))


class NGPTModel(NGPTPreTrainedModel):
    """Token ids to final hidden states, unit vectors; there is no final norm."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [NGPTDecoderLayer(config, number) for number in range(config.num_hidden_layers)]
        )
        self.rotary_emb = NGPTRotaryEmbedding(config)
        self.gradient_checkpointing = False
        gate = ["suv_gate"] if config.mlp_gated else []
        self._keep_in_fp32_modules_strict = ["sqk", "suv", *gate, "attn_alpha", "mlp_alpha"]
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, D] of ids [B, T] or of given embeddings [B, T, D].

        Raises:
            ValueError: not exactly one of input_ids and inputs_embeds is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        h = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(h.shape[1], device=h.device) + seen).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=h,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(h, position_ids=position_ids)
        for layer in self.layers:
            h = layer(
                h,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=h, past_key_values=past_key_values)


class NGPTForCausalLM(NGPTPreTrainedModel, GenerationMixin):
    """Language model: cosines of hidden state and head times sz; logits are fp32."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output", "sz": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan: dict[str, Any] = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__(config)
        self.model = NGPTModel(config)
        self.vocab_size = V = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, V, bias=False)
        self.sz_start = _start(config, config.sz_init_scaling)
        self.sz_factor = config.sz_init_value / self.sz_start
        self.sz = scaling_column(V, self.sz_start)
        self._keep_in_fp32_modules_strict = ["sz"]
        self.post_init()

    @torch.no_grad()
    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the number of token ids; scales of new ones start like all did."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        old, size = self.sz.weight, embeddings.weight.shape[0]
        if size != len(old):
            self.sz = scaling_column(size, self.sz_start).to(old.device, old.dtype)
            self.sz.weight.fill_(self.sz_start)
            self.sz.weight[: len(old)] = old[:size]
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], of the last ``logits_to_keep`` tokens only if that is not 0.

        With labels [B, T], -100 where none counts, also the loss of predicting the next label.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept]).float()
        logits = logits * effective(self.sz, self.sz_factor)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["NGPTForCausalLM", "NGPTModel", "NGPTPreTrainedModel"]
