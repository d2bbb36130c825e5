"""Configuration of nGPT (arXiv 2410.01131) for Hugging Face transformers.

The fields and defaults are those of NVIDIA's port (transformers PR 38276, head 0d276c3), whose
``config.json`` loads unchanged; what this version adds is marked and off by default.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class NGPTConfig(PretrainedConfig):
    """Shape and maths of an NGPT model.

    Added to the port:
        mlp_gated: the MLP is ``down(up(x) * act(gate(x)))``, not ``down(act(up(x)))``.
        mlp_norm_eps: added to the length of the MLP's output; a constant in the port.
        rope_interleaved: pairs (2i, 2i + 1) turn together, not (i, i + half).
        sqk_init_scaling, attn_alpha_init_scaling, mlp_alpha_init_scaling, sz_init_scaling: what a
            stored scaling vector starts at; ``initializer_range`` where None, as in the port.

    A scaling vector's effective value is ``stored * init_value / init_scaling`` (section 2.5).
    """

    model_type = "ngpt"
    default_theta = 1_000_000.0
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.sqk": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.suv": "colwise",
        "layers.*.mlp.suv_gate": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {  # noqa: RUF012
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    }

    def __init__(
        self,
        vocab_size: int = 131072,
        hidden_size: int = 4096,
        intermediate_size: int = 21504,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        head_dim: int | None = 128,
        num_key_value_heads: int | None = 8,
        hidden_act: str = "relu2",
        mlp_gated: bool = False,
        mlp_norm_eps: float = 1e-6,
        max_position_embeddings: int = 8192,
        initializer_range: float = 0.014,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        rope_parameters: dict[str, Any] | None = None,
        rope_interleaved: bool = False,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        mlp_bias: bool = False,
        sqk_init_value: float = 1.0,
        sqk_init_scaling: float | None = None,
        attn_alpha_init_value: float = 0.05,
        attn_alpha_init_scaling: float | None = None,
        suv_init_value: float = 1.0,
        suv_init_scaling: float = 1.0,
        mlp_alpha_init_value: float = 0.05,
        mlp_alpha_init_scaling: float | None = None,
        sz_init_value: float = 1.0,
        sz_init_scaling: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.num_key_value_heads = (
            num_attention_heads if num_key_value_heads is None else num_key_value_heads
        )
        self.hidden_act = hidden_act
        self.mlp_gated = mlp_gated
        if not mlp_gated:
            plan = {n: how for n, how in self.base_model_tp_plan.items() if "gate" not in n}
            self.base_model_tp_plan = plan  # type: ignore[misc]
        self.mlp_norm_eps = mlp_norm_eps
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        # the base class moves the port's rope_theta and partial_rotary_factor in here
        self.rope_parameters = rope_parameters
        self.rope_interleaved = rope_interleaved
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.mlp_bias = mlp_bias
        self.sqk_init_value, self.sqk_init_scaling = sqk_init_value, sqk_init_scaling
        self.attn_alpha_init_value = attn_alpha_init_value
        self.attn_alpha_init_scaling = attn_alpha_init_scaling
        self.suv_init_value, self.suv_init_scaling = suv_init_value, suv_init_scaling
        self.mlp_alpha_init_value = mlp_alpha_init_value
        self.mlp_alpha_init_scaling = mlp_alpha_init_scaling
        self.sz_init_value, self.sz_init_scaling = sz_init_value, sz_init_scaling
        super().__init__(**kwargs)
