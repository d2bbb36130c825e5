"""Parameter names and arguments of the package nGPT-pytorch (0.2.16), and ours.

A state dict has the shape of a model but not all of its maths; the rest are arguments of their
``nGPT``. Their s_qk multiplies the queries once, ours twice, so ours is the root of theirs. With
parametrised weights the package normalises what is stored in every forward pass; ours are stored
normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.config import ModelConfig, ScaleConfig

_ROOT = {
    "token_embed.linear.weight": "embed.weight",
    "to_logits.linear.weight": "head.weight",
    "logit_scale.scale": "s_z.value",
}
_BLOCK = {
    "0.fn.to_q.linear.weight": "attention.query.weight",
    "0.fn.to_k.linear.weight": "attention.key.weight",
    "0.fn.to_v.linear.weight": "attention.value.weight",
    "0.fn.to_out.linear.weight": "attention.output.weight",
    "0.fn.qk_scale.scale": "attention.s_qk.value",
    "0.branch_scale.scale": "attention_residual.alpha.value",
    "1.fn.to_hidden.linear.weight": "mlp.up.weight",
    "1.fn.to_gate.linear.weight": "mlp.gate.weight",
    "1.fn.to_out.linear.weight": "mlp.down.weight",
    "1.fn.hidden_scale.scale": "mlp.s_u.value",
    "1.fn.gate_scale.scale": "mlp.s_v.value",
    "1.branch_scale.scale": "mlp_residual.alpha.value",
}
_FREQUENCIES = "rotary_embed.freqs"
_ORIGINAL = "parametrizations.weight.original"
_WITHOUT_SIGN = ("s_qk.value", "alpha.value")
_THETA = 10000.0

_MATHS: dict[str, Any] = {
    "attn_norm_qk": True,
    "add_value_residual": True,
    "num_hyperspheres": 1,
    "norm_eps": 0.0,
    "causal": True,
    "alpha_init": None,
    "s_logit_init": 1.0,
    "s_logit_scale": None,
    "alpha_attn_init": None,
    "alpha_attn_scale": None,
    "alpha_ff_init": None,
    "alpha_ff_scale": None,
    "s_qk_init": 1.0,
    "s_qk_scale": None,
    "s_ff_hidden_init": 1.0,
    "s_ff_hidden_scale": 1.0,
    "s_ff_gate_init": 1.0,
    "s_ff_gate_scale": 1.0,
}
_SHAPE = ("num_tokens", "dim", "depth", "dim_head", "heads", "tied_embedding")
_OF_NO_EFFECT = ("ff_expand_factor", "manual_norm_weights", "ce_ignore_index", "attn_flash_kwargs")
ARGUMENTS = frozenset((*_MATHS, *_SHAPE, *_OF_NO_EFFECT))
"""Arguments of their ``nGPT``. Of no effect here: what the tensors tell, the loss, kernels."""


def our_name(theirs: str) -> str:
    """Our parameter for one of theirs; ``parametrizations.weight.original`` counts as ``weight``.

    Raises:
        ValueError: the package has no parameter called so.
    """
    plain = theirs.replace(_ORIGINAL, "weight")
    if plain in _ROOT:
        return _ROOT[plain]
    layer, _, rest = plain.removeprefix("layers.").partition(".")
    if not (plain.startswith("layers.") and layer.isdigit() and rest in _BLOCK):
        raise ValueError(f"{theirs} is no parameter of nGPT-pytorch")
    return f"blocks.{layer}.{_BLOCK[rest]}"


def is_state_dict(tensors: Mapping[str, Any]) -> bool:
    """Whether these names are a model's of the package."""
    return _FREQUENCIES in tensors and any(name.startswith("token_embed.") for name in tensors)


@dataclass(frozen=True)
class Published:
    """A state dict of the package together with its model's arguments.

    Args:
        tensors: the state dict, whole.
        given: arguments that its ``nGPT`` was made with; others are the package's defaults.

    Raises:
        ValueError: naming an argument that the package has not, that the tensors contradict or
            that has no counterpart here, or a tensor that has none.
    """

    tensors: Mapping[str, Tensor]
    given: Mapping[str, Any]

    def __post_init__(self) -> None:
        if unknown := sorted(self.given.keys() - ARGUMENTS):
            raise ValueError(f"{', '.join(unknown)}: nGPT-pytorch's nGPT has no such argument")
        for name, found in self._shape().items():
            if self.given.get(name, found) != found:
                raise ValueError(f"{name} = {self.given[name]}, but the tensors have {found}")
        if not self._maths("causal"):
            raise ValueError("causal = false: only causal models can be trained here")
        for kind in ("init", "scale"):
            hidden, gate = (self._maths(f"s_ff_{which}_{kind}") for which in ("hidden", "gate"))
            if hidden != gate:
                raise ValueError(
                    f"s_ff_hidden_{kind} = {hidden} and s_ff_gate_{kind} = {gate}: model.s_uv has "
                    "one for both here, so they have to be equal"
                )
        self._refuse_negative_scales()

    @property
    def warning(self) -> str:
        """What was taken for granted, and what training changes at once."""
        told = []
        unknown = [n for n in _MATHS if n not in self.given]
        if unknown:
            told.append(
                "a state dict does not tell these arguments, the package's defaults were taken: "
                + ", ".join(f"{name}={_MATHS[name]}" for name in unknown)
            )
        if self._maths("num_hyperspheres") > 1:
            told.append(
                "the package normalises to_out across its hyperspheres, this project within each: "
                "the first training step changes those weights"
            )
        return "; ".join(told)

    @property
    def names(self) -> dict[str, str]:
        """Their parameter for every one of ours."""
        return {our_name(name): name for name in self.tensors if name != _FREQUENCIES}

    @property
    def model(self) -> ModelConfig:
        """Our configuration."""
        shape = self._shape()
        return ModelConfig(
            width=shape["dim"],
            layers=shape["depth"],
            heads=shape["heads"],
            head_dim=shape["dim_head"],
            ffn_width=self.tensors[self.names["blocks.0.mlp.up.weight"]].shape[0],
            vocab_size=shape["num_tokens"],
            qk_norm=self._maths("attn_norm_qk"),
            value_residual=self._maths("add_value_residual"),
            tied_embedding=shape["tied_embedding"],
            hyperspheres=self._maths("num_hyperspheres"),
            sphere_slack=self._maths("norm_eps"),
            rope_theta=_THETA,
            rope_frequencies=self._unusual_frequencies(),
            alpha_attention=self._scale("alpha_attn", self._alpha()),
            alpha_mlp=self._scale("alpha_ff", self._alpha()),
            s_qk=ScaleConfig(scale=1.0),
            s_uv=self._scale("s_ff_hidden", 1.0),
            s_z=self._scale("s_logit", 1.0),
        )

    def load(self, name: str) -> Tensor:
        """The whole parameter that we call so, fp32."""
        theirs = self.names[name]
        values = self.tensors[theirs].float()
        if name.endswith("s_qk.value"):
            return (values * self._s_qk_factor(int(name.split(".")[1]))).sqrt()
        return self._normalised(values, theirs) if theirs.endswith(_ORIGINAL) else values

    def _refuse_negative_scales(self) -> None:
        for name, theirs in self.names.items():
            negative = self.tensors[theirs] < 0 if name.endswith(_WITHOUT_SIGN) else torch.empty(0)
            if negative.any():
                raise ValueError(
                    f"{theirs} has {int(negative.sum())} negative values of {len(negative)}: here "
                    "s_qk is squared and alpha taken without sign, so this model cannot be had"
                )

    def _normalised(self, weight: Tensor, theirs: str) -> Tensor:
        """What the package's parametrisation makes of a stored weight. It stacks the groups along a
        new first axis: along the embedding axis for most, across groups for ``to_out``."""
        groups, slack = self._maths("num_hyperspheres"), self._maths("norm_eps")
        dim = 0 if ".to_out." in theirs else -1
        parts = torch.stack(weight.chunk(groups, dim)) if groups > 1 else weight
        length = parts.norm(dim=dim, keepdim=True)
        parts = parts * (length.clamp(1 - slack, 1 + slack) / length.clamp_min(1e-12))
        return torch.cat([*parts], dim) if groups > 1 else parts

    def _shape(self) -> dict[str, Any]:
        """Arguments that the tensors tell."""
        vocab, width = self.tensors[self.names["embed.weight"]].shape
        head_dim = 2 * len(self.tensors[_FREQUENCIES])
        layers = {name.split(".")[1] for name in self.names if name.startswith("blocks.")}
        return {
            "num_tokens": vocab,
            "dim": width,
            "depth": len(layers),
            "dim_head": head_dim,
            "heads": self.tensors[self.names["blocks.0.attention.query.weight"]].shape[0]
            // head_dim,
            "tied_embedding": "head.weight" not in self.names,
        }

    def _maths(self, name: str) -> Any:
        value = self.given.get(name, _MATHS[name])
        return tuple(value) if isinstance(value, list) else value

    def _alpha(self) -> float:
        given = self._maths("alpha_init")
        return 1 / self._shape()["depth"] if given is None else float(given)

    def _scale(self, name: str, init: float) -> ScaleConfig:
        """Initial value and scale, one or one for each layer; None is the default."""
        return ScaleConfig(
            init=_without_none(self._maths(f"{name}_init"), init),
            scale=_without_none(self._maths(f"{name}_scale"), 0.0),
        )

    def _s_qk_factor(self, layer: int) -> float:
        """Effective over stored value in one layer."""
        default = 1 / self._shape()["dim"]
        init = _without_none(self._maths("s_qk_init"), 1.0)
        scale = _without_none(self._maths("s_qk_scale"), default)
        init, scale = (v[layer] if isinstance(v, tuple) else v for v in (init, scale))
        return init / scale

    def _unusual_frequencies(self) -> tuple[float, ...]:
        """Those of the rotary embedding, if they do not follow from its base."""
        found = self.tensors[_FREQUENCIES].double()
        usual = _THETA ** (-torch.arange(len(found), dtype=torch.float64) / len(found))
        return () if torch.allclose(found, usual, rtol=1e-6, atol=0) else tuple(found.tolist())


def _without_none(value: Any, default: float) -> Any:
    if isinstance(value, tuple):
        return tuple(default if v is None else v for v in value)
    return default if value is None else value
