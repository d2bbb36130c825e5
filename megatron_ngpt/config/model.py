"""The shape and the maths of a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """A learned scaling vector: where it starts and how fast Adam moves it.

    The stored parameter starts at ``scale`` and is multiplied by ``init / scale`` in use, so the
    effective value starts at ``init`` and a step of size lr moves it by lr * init / scale
    (arXiv 2410.01131, section 2.5).
    """

    init: float = 1.0
    """Effective value at the start."""

    scale: float = 0.0
    """Value of the stored parameter at the start; 0 means 1 / sqrt(model.width)."""


SCALES = ("alpha_attention", "alpha_mlp", "s_qk", "s_uv", "s_z")
"""The fields of :class:`ModelConfig` that are scaling vectors."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture. Two models share every layer: nGPT and the GPT it is compared with."""

    architecture: Literal["ngpt", "gpt"] = "ngpt"
    """ngpt: normalized transformer; gpt: the RMSNorm pre-norm baseline of the same shape."""

    width: int = 256
    """Embedding width D, the dimension of the hypersphere."""

    layers: int = 6
    """Number of transformer blocks."""

    heads: int = 8
    """Number of query heads."""

    kv_heads: int = 0
    """Number of key and value heads; must divide heads. 0 means as many as heads."""

    head_dim: int = 0
    """Width of one head, even. 0 means width / heads."""

    ffn_width: int = 0
    """Inner width of the feed-forward. 0 means 4 * width, as in the paper."""

    mlp: Literal["swiglu", "relu2"] = "swiglu"
    """Feed-forward: swiglu, gated, as in the paper; relu2, relu(x)^2 without a gate, as in NVIDIA's
    port for Hugging Face (transformers PR 38276)."""

    mlp_eps: float = 0.0
    """Added to the length of the MLP's output when ngpt normalises it; the port has 1e-6, because
    squared ReLU can return zeros. Here zeros stay zeros without it."""

    vocab_size: int = 32000
    """Number of token ids; every id in the data must be below it."""

    rope_theta: float = 10000.0
    """Base of the rotary position embedding."""

    rope_scaling: Literal["none", "linear", "ntk", "yarn"] = "none"
    """How the rotary embedding is stretched for sequences rope_factor times as long as before:
    linear interpolates positions, ntk raises the base, yarn interpolates slow dimensions only and
    warms up attention."""

    rope_factor: float = 1.0
    """How much longer sequences are than those the model was trained with, for rope_scaling."""

    rope_original: int = 0
    """Tokens of the sequences that the model was trained with before, for yarn."""

    rope_style: Literal["interleaved", "half"] = "interleaved"
    """Which dimensions of a head turn together: interleaved, neighbours (2i, 2i + 1), as in the
    paper's reference code; half, (i, i + half), as in Hugging Face models. The same maths after a
    permutation of query and key rows, so weights of one are not weights of the other."""

    rotary_fraction: float = 1.0
    """Share of a head's dimensions that the rotary embedding turns, the first ones."""

    init_std: float = 0.0
    """Standard deviation of initial matrices (nGPT then normalises them).
    0 means 1 / sqrt(width) for ngpt and 0.02 for gpt."""

    norm_eps: float = 1e-6
    """Epsilon inside the RMSNorm of gpt; ngpt's norms have none."""

    alpha_attention: ScaleConfig = field(default_factory=lambda: ScaleConfig(init=0.05))
    """Step size of the attention block, alpha_A, one per embedding dimension."""

    alpha_mlp: ScaleConfig = field(default_factory=lambda: ScaleConfig(init=0.05))
    """Step size of the MLP block, alpha_M, one per embedding dimension."""

    s_qk: ScaleConfig = field(default_factory=ScaleConfig)
    """Scale of normalised queries and keys, one per query-head dimension."""

    s_uv: ScaleConfig = field(default_factory=lambda: ScaleConfig(scale=1.0))
    """Scale of the MLP's two inner projections u and v, one per inner unit each."""

    s_z: ScaleConfig = field(default_factory=ScaleConfig)
    """Scale of the logits, one per token id."""

    def __post_init__(self) -> None:
        """Replace every "0 means ..." by its value, once, so that code reads plain numbers.

        ``dataclasses.replace`` therefore keeps derived values: set them to 0 to derive them anew.
        """
        width = max(self.width, 1)  # config.checks tells of an impossible one
        derived: dict[str, object] = {
            "kv_heads": self.kv_heads or self.heads,
            "head_dim": self.head_dim or self.width // max(self.heads, 1),
            "ffn_width": self.ffn_width or 4 * self.width,
            "init_std": self.init_std or (width**-0.5 if self.is_ngpt else 0.02),
        }
        for name in SCALES:
            scale: ScaleConfig = getattr(self, name)
            derived[name] = replace(scale, scale=scale.scale or width**-0.5)
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def is_ngpt(self) -> bool:
        """Whether weights and hidden states live on the hypersphere."""
        return self.architecture == "ngpt"

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate beside its inner projection."""
        return self.mlp == "swiglu"

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head the rotary embedding turns."""
        return int(self.head_dim * self.rotary_fraction)
