"""Configuration of nGPT (arXiv 2410.01131) for Hugging Face transformers.

The fields and defaults are those of NVIDIA's port (transformers PR 38276, head 0d276c3), whose
``config.json`` loads unchanged; what this version adds is marked and off by default.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PretrainedConfig


class Scaling(NamedTuple):
    """A scaling vector in one layer; its effective value is ``stored * factor`` (section 2.5)."""

    size: int
    """Stored numbers; 0 of a fixed one, 1 of one that all dimensions share."""

    start: float
    """Where they start."""

    factor: float
    """Of the stored numbers; the effective value itself when there are none."""


class NGPTConfig(PretrainedConfig):
    """Shape and maths of an NGPT model; the fields of the port first, then what is added to it."""

    model_type = "ngpt"
    default_theta = 1_000_000.0
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.sqk": "colwise",
        "layers.*.self_attn.subln": "replicated_with_grad_allreduce",
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

    vocab_size: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 21504
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    head_dim: int = 128
    """Of values and of a head's output; None means hidden_size / num_attention_heads."""
    num_key_value_heads: int = 8
    """None means num_attention_heads."""
    hidden_act: str = "relu2"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.014
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] = None  # type: ignore[assignment]
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    sqk_init_value: float | list[float] = 1.0
    """What the effective value of a scaling vector starts at; of all but sz, a list has one number
    for each layer (added)."""
    attn_alpha_init_value: float | list[float] = 0.05
    suv_init_value: float | list[float] = 1.0
    mlp_alpha_init_value: float | list[float] = 0.05
    sz_init_value: float = 1.0
    suv_init_scaling: float | list[float] | None = 1.0
    """What a stored scaling vector starts at; the next four are added. None means
    initializer_range, as in the port."""
    sqk_init_scaling: float | list[float] | None = None
    attn_alpha_init_scaling: float | list[float] | None = None
    mlp_alpha_init_scaling: float | list[float] | None = None
    sz_init_scaling: float | None = None

    normalized: bool = True
    """False: no sphere but the RMSNorm pre-norm GPT that nGPT is compared with."""
    rms_norm_eps: float = 1e-6
    """Of GPT's norms."""
    attention_kind: str = "standard"
    """standard, differential (arXiv 2410.05258) or ensemble (a learned sum of softmax maps)."""
    attention_maps: int = 1
    """Softmax maps of a head; 2 of differential attention."""
    map_dim: int = 0
    """Width of a map's queries and keys; 0 means head_dim."""
    head_norm_eps: float = 1e-5
    """Of the norm of a head's output, differential and ensemble."""
    qk_norm: bool = True
    """Whether queries and keys are normalised, where anything is."""
    gpt_qk_norm: bool = False
    """Whether a GPT normalises queries and keys as nGPT does, sqk included."""
    paired_sqk: bool = False
    """One value of sqk for both dimensions that turn together."""
    value_residual: bool = False
    """Average the values of every layer with those of the first (arXiv 2410.17897)."""
    residual_step: str = "lerp"
    """lerp, along the chord, or slerp, along the arc (section 2.2.2)."""
    num_hyperspheres: int = 1
    """Groups of length 1 in every vector of matrices, queries and keys (nGPT-pytorch)."""
    sphere_slack: float = 0.0
    """How far from 1 a length may stay (nGPT-pytorch's norm_eps)."""
    mlp_gated: bool = False
    """The MLP is ``down(up(x) * act(gate(x)))``, not ``down(act(up(x)))``."""
    mlp_norm_eps: float = 1e-6
    """Added to the length of the MLP's output; a constant in the port."""
    rope_interleaved: bool = False
    """Pairs (2i, 2i + 1) turn together, not (i, i + half)."""
    rope_frequencies: list[float] | None = None
    """Turn of each pair per position instead of those of rope_theta; of types default, linear."""
    shared_scales: list[str] | None = None
    """Which of sqk, suv, attn_alpha, mlp_alpha and sz are one number for all dimensions."""
    fixed_scales: list[str] | None = None
    """Which of them have no parameter, but stay at their init_value."""
    training: dict[str, Any] | None = None
    """Settings of training, which the model here does not look at."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other fields; the plan names what the model has."""
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.map_dim = self.map_dim or self.head_dim
        # the base class moves the port's rope_theta and partial_rotary_factor in there
        super().__post_init__(**kwargs)
        plan = {name: how for name, how in self.base_model_tp_plan.items() if self._has(name)}
        for scale in set(self.shared_scales or ()) & {"sqk", "suv"}:
            shared = {name for name in plan if name.rpartition(".")[2].startswith(scale)}
            plan |= dict.fromkeys(shared, "replicated_with_grad_allreduce")
        self.base_model_tp_plan = plan  # type: ignore[misc]
        if not self.normalized:
            norm = {"norm": (["hidden_states"], ["hidden_states"])}
            self.base_model_pp_plan = self.base_model_pp_plan | norm  # type: ignore[misc]

    def _has(self, module: str) -> bool:
        name = module.rpartition(".")[2]
        if name == "subln":
            return self.attention_kind != "standard"
        if name in ("gate_proj", "suv_gate") and not self.mlp_gated:
            return False
        scale = name.removesuffix("_gate")
        there = {"sqk": self.scales_qk, "suv": self.normalized}
        return scale not in there or (there[scale] and not self.is_fixed(scale))

    @property
    def scales_qk(self) -> bool:
        """Whether queries and keys are multiplied by sqk, and perhaps normalised."""
        return self.normalized or self.gpt_qk_norm

    @property
    def paired_dim(self) -> int:
        """Dimensions of a head that have one value of sqk in pairs."""
        share = self.rope_parameters.get("partial_rotary_factor", 1.0)
        return int(self.map_dim * share) if self.paired_sqk else 0

    @property
    def on_one_sphere(self) -> bool:
        """Whether vectors have length 1, and not just about or in groups."""
        return self.num_hyperspheres == 1 and self.sphere_slack == 0

    def is_fixed(self, name: str) -> bool:
        """Whether a scaling vector has no parameter."""
        return name in (self.fixed_scales or ())

    def scaling(self, name: str, size: int, layer: int = 0) -> Scaling:
        """The scaling vector of a name (sqk, suv, attn_alpha, mlp_alpha, sz) in one layer."""
        values = (getattr(self, f"{name}_init_{which}") for which in ("value", "scaling"))
        value, start = (v[layer] if isinstance(v, (list, tuple)) else v for v in values)
        start = self.initializer_range if start is None else start
        if self.is_fixed(name):
            return Scaling(0, start, value)
        return Scaling(1 if name in (self.shared_scales or ()) else size, start, value / start)
