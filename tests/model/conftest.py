"""Small models of every kind."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from megatron_ngpt.config import ModelConfig, ScaleConfig
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table

KINDS = {
    "ngpt": ModelConfig(width=24, layers=2, heads=4, vocab_size=19, ffn_width=40),
    "ngpt grouped": ModelConfig(
        width=24, layers=2, heads=4, kv_heads=2, head_dim=10, vocab_size=19, ffn_width=40
    ),
    "gpt": ModelConfig(architecture="gpt", width=24, layers=2, heads=4, vocab_size=19),
    "gpt grouped": ModelConfig(
        architecture="gpt", width=24, layers=2, heads=4, kv_heads=1, vocab_size=19, ffn_width=40
    ),
    "ngpt as ported": ModelConfig(
        width=24, layers=2, heads=4, kv_heads=2, head_dim=8, vocab_size=19, ffn_width=40,
        mlp="relu2", mlp_eps=1e-6, rope_style="half", rotary_fraction=0.5, rope_theta=1e6,
    ),
    "ngpt paired": ModelConfig(
        width=24, layers=2, heads=4, kv_heads=2, head_dim=8, vocab_size=19, ffn_width=40,
        rope_style="half", rotary_fraction=0.5, s_qk=ScaleConfig(paired=True),
    ),
    "gpt normed": ModelConfig(
        architecture="gpt", width=24, layers=2, heads=4, kv_heads=2, vocab_size=19, ffn_width=40,
        gpt_qk_norm=True, s_qk=ScaleConfig(scale=1.0),
    ),
    "gpt relu2": ModelConfig(
        architecture="gpt", width=24, layers=2, heads=4, vocab_size=19, mlp="relu2"
    ),
}  # fmt: skip
for _name in ("ngpt", "gpt grouped"):
    KINDS[f"{_name} differential"] = replace(
        KINDS[_name], attention="differential", maps=0, map_dim=4, head_dim=8
    )
KINDS["ngpt grouped ensemble"] = replace(
    KINDS["ngpt grouped"], attention="ensemble", maps=0, map_dim=4
)
KINDS["gpt ensemble"] = replace(
    KINDS["gpt"], attention="ensemble", maps=4, map_dim=2, head_norm_eps=1e-3
)
KINDS["ngpt options"] = replace(
    KINDS["ngpt grouped"],
    tied_embedding=True,
    value_residual=True,
    alpha_mlp=ScaleConfig(init=0.05, shared=True),
    s_uv=ScaleConfig(shared=True, init=(1.0, 2.0)),
    s_z=ScaleConfig(init=3.0),
    rope_frequencies=(1.0, 0.5, 0.2, 0.1, 0.01),
)


@pytest.fixture(params=KINDS)
def config(request) -> ModelConfig:
    """Shape of a small model."""
    return KINDS[request.param]


@pytest.fixture(params=[kind for kind in KINDS if KINDS[kind].is_ngpt])
def ngpt_config(request) -> ModelConfig:
    """Shape of a small nGPT."""
    return KINDS[request.param]


@pytest.fixture
def build() -> Callable[..., NGPT]:
    """A model with its initial values; scaling vectors moved off their constants."""

    def make(config: ModelConfig, dtype: torch.dtype = torch.float32) -> NGPT:
        model = NGPT(config, dtype)
        initialise(model, parameter_table(config), seed=1)
        generator = torch.Generator().manual_seed(2)
        for parameter in (p for p in model.parameters() if p.dim() == 1):
            noise = torch.rand(parameter.shape, generator=generator) + 0.5
            parameter.data *= noise
        return model

    return make
