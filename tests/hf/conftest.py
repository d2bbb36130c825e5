"""Small models of every kind that has a Hugging Face twin, as checkpoints and exported."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_ngpt.config import Config, DataConfig, ModelConfig, ScaleConfig
from megatron_ngpt.data.tokenizer import train_tokenizer
from megatron_ngpt.interop.export import export
from megatron_ngpt.interop.imported import write_checkpoint
from megatron_ngpt.interop.sources import Source
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table

KINDS = {
    "default": ModelConfig(width=24, layers=3, heads=4, ffn_width=40, vocab_size=330),
    "grouped": ModelConfig(
        width=24, layers=2, heads=4, kv_heads=2, head_dim=10, vocab_size=330, ffn_width=40,
        rope_theta=500.0, rotary_fraction=0.4, alpha_mlp=ScaleConfig(init=0.2, scale=0.3),
        s_qk=ScaleConfig(init=1.3), s_uv=ScaleConfig(init=0.8, scale=0.7), init_std=0.1,
    ),
    "stretched": ModelConfig(
        width=24, layers=2, heads=2, ffn_width=40, vocab_size=330, rope_scaling="yarn",
        rope_factor=4.0, rope_original=8,
    ),
    "as ported": ModelConfig(
        width=24, layers=2, heads=4, kv_heads=1, head_dim=8, vocab_size=330, ffn_width=40,
        mlp="relu2", mlp_eps=1e-6, rope_style="half", rope_theta=1e6, s_z=ScaleConfig(init=3.0),
    ),
    "differential": ModelConfig(
        width=24, layers=3, heads=4, kv_heads=2, head_dim=12, ffn_width=40, vocab_size=330,
        attention="differential", rotary_fraction=0.7, s_qk=ScaleConfig(paired=True),
    ),
    "ensemble": ModelConfig(
        width=24, layers=2, heads=4, kv_heads=2, head_dim=14, ffn_width=40, vocab_size=330,
        attention="ensemble", tied_embedding=True,
    ),
    "gpt": ModelConfig(
        architecture="gpt", init_std=0.3, width=24, layers=2, heads=4, kv_heads=2, ffn_width=40,
        vocab_size=330, norm_eps=1e-5,
    ),
    "gpt differential": ModelConfig(
        architecture="gpt", init_std=0.3, width=24, layers=2, heads=2, kv_heads=1, ffn_width=40,
        vocab_size=330, attention="differential", rope_scaling="yarn", rope_factor=4.0,
        rope_original=8, gpt_qk_norm=True, s_qk=ScaleConfig(scale=1.0),
    ),
    "gpt ensemble": ModelConfig(
        architecture="gpt", init_std=0.3, width=24, layers=2, heads=4, kv_heads=2, head_dim=12,
        ffn_width=40, vocab_size=330, attention="ensemble", maps=2, map_dim=8, value_residual=True,
        mlp="relu2", tied_embedding=True,
    ),
    "nugpt": ModelConfig(
        width=24, layers=3, heads=4, ffn_width=40, vocab_size=330, parametrisation="nugpt",
        reference_width=10, reference_layers=7, alpha_mlp=ScaleConfig(init=(0.1, 0.07, 0.3)),
        s_z=ScaleConfig(init=1.7), logit_preconditioning=True,
    ),
    "spheres": ModelConfig(
        width=24, layers=2, heads=2, ffn_width=40, vocab_size=330, hyperspheres=3,
        sphere_slack=0.05, value_residual=True, s_uv=ScaleConfig(scale=(1.0, 0.5)),
        alpha_mlp=ScaleConfig(init=(0.1, 0.2), shared=True), s_qk=ScaleConfig(learned=False),
        rope_frequencies=(1.0, 0.3, 0.1, 0.02, 0.01, 0.002),
    ),
    "arc": ModelConfig(
        width=24, layers=2, heads=4, head_dim=8, ffn_width=40, vocab_size=330, residual="slerp",
        qk_norm=False, rope_scaling="linear", rope_factor=2.0,
        rope_frequencies=(1.0, 0.3, 0.1, 0.02), s_qk=ScaleConfig(init=1.5, shared=True),
        s_uv=ScaleConfig(init=0.8, learned=False), s_z=ScaleConfig(init=4.0, learned=False),
        alpha_attention=ScaleConfig(init=0.3, learned=False),
    ),
}  # fmt: skip
SENTENCES = ["the cat sat on the mat", "a dog lay on the rug", "where is 1 cat?\n\n\tdéjà vu"]


@dataclass
class Exported:
    """A model, its checkpoint and its export."""

    model: NGPT
    weights: dict[str, Tensor]
    checkpoint: Path
    folder: Path


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory) -> Path:
    """A small tokenizer of bytes and a few pieces."""
    path = tmp_path_factory.mktemp("words") / "toy.model"
    train_tokenizer(SENTENCES * 20, path, vocab_size=310)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory, sentencepiece) -> Callable[[str], Exported]:
    """The export of a kind of model, made once."""
    made: dict[str, Exported] = {}

    def make(kind: str) -> Exported:
        if kind not in made:
            made[kind] = _export(KINDS[kind], tmp_path_factory.mktemp("export"), sentencepiece)
        return made[kind]

    return make


def _export(shape: ModelConfig, folder: Path, tokenizer: Path) -> Exported:
    model = NGPT(shape)
    initialise(model, parameter_table(shape), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in (p for p in model.parameters() if p.dim() == 1):
        parameter.data *= torch.rand(parameter.shape, generator=generator) + 0.5
    weights = {name: p.detach() for name, p in model.named_parameters()}
    config = Config(model=shape, data=DataConfig(tokenizer=str(tokenizer), seq_len=64))
    source = Source("a test", shape, weights.__getitem__)
    checkpoint = write_checkpoint(source, config, folder / "checkpoints")
    export(checkpoint, folder / "hf", dtype=torch.float32, file_bytes=20_000)
    return Exported(model.eval(), weights, checkpoint, folder / "hf")
