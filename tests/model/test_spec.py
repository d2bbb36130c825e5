import math
from dataclasses import replace

import pytest

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table

# the embedding axis of every matrix, written out once more: dim 1 reads hidden states or holds
# one per row, dim 0 writes them
NORM_DIMS = {
    "embed": 1, "head": 1, "query": 1, "key": 1, "value": 1, "up": 1, "gate": 1,
    "output": 0, "down": 0,
}  # fmt: skip


def test_table_is_the_model(config):
    named = {name: tuple(p.shape) for name, p in NGPT(config).named_parameters()}
    assert {name: spec.shape for name, spec in parameter_table(config).items()} == named
    assert all(spec.name == name for name, spec in parameter_table(config).items())


def test_every_matrix_of_ngpt_is_unit_along_the_embedding_axis(config):
    for name, spec in parameter_table(config).items():
        kind = name.split(".")[-2]
        expected = NORM_DIMS[kind] if len(spec.shape) == 2 and config.is_ngpt else None
        assert spec.norm_dim == expected, name
        if spec.norm_dim is not None:
            assert spec.shape[spec.norm_dim] == config.width


def test_tensor_parallelism_never_splits_a_vector(config):
    for spec in parameter_table(config).values():
        assert spec.norm_dim is None or spec.norm_dim != spec.tp_dim
        assert spec.tp_dim is None or spec.tp_dim < len(spec.shape)
        assert len(spec.shape) == 1 or spec.tp_dim is not None


def test_vectors_keep_fp32_and_nothing_else_does(config):
    for spec in parameter_table(config).values():
        assert spec.keeps_fp32 == (len(spec.shape) == 1)


def test_scales_are_split_like_the_activations_they_multiply():
    """Halving every split dimension leaves the table of a model half as wide inside."""
    whole = ModelConfig(width=24, layers=2, heads=4, kv_heads=2, ffn_width=40, vocab_size=20)
    half = replace(whole, heads=2, kv_heads=1, ffn_width=20, vocab_size=10)
    inside = parameter_table(half)
    for name, spec in parameter_table(whole).items():
        shape = list(spec.shape)
        if spec.tp_dim is not None:
            shape[spec.tp_dim] //= 2
        assert tuple(shape) == inside[name].shape, name


def test_parameter_count_of_a_published_shape():
    """nGPT-0.5B of arXiv 2410.01131, table 2: 468.2 M parameters."""
    table = parameter_table(ModelConfig(width=1024, layers=24, heads=16, vocab_size=32000))
    assert sum(math.prod(spec.shape) for spec in table.values()) == pytest.approx(468.2e6, rel=1e-3)
