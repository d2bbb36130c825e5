from dataclasses import replace
from itertools import product

import pytest
import torch

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.parallel.shard import VOCAB_UNIT, local_model, local_rows, local_shard

MODEL = ModelConfig(
    width=10, layers=2, heads=12, kv_heads=12, head_dim=2, ffn_width=36, vocab_size=300
)
VOCABULARIES = (1, 97, 128, 129, 300, 512, 1537)


def shards(spec, tp):
    degrees = Degrees(pp=1, dp=1, cp=1, tp=tp)
    return [local_shard(spec, degrees, index) for index in range(tp)]


def cases():
    for architecture, vocab_size in product(("ngpt", "gpt"), VOCABULARIES):
        yield replace(MODEL, architecture=architecture, vocab_size=vocab_size)


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_real_boxes_cover_every_element_once_or_are_replicated(tp):
    for model in cases():
        for spec in parameter_table(model).values():
            held = torch.zeros(spec.shape, dtype=torch.int64)
            for shard in shards(spec, tp):
                assert shard.replicated == (spec.tp_dim is None or tp == 1)
                box = zip(shard.origin, shard.real, strict=True)
                held[tuple(slice(at, at + size) for at, size in box)] += 1
            assert (held == (tp if spec.tp_dim is None else 1)).all(), (model.vocab_size, spec)


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
def test_boxes_are_the_parameters_of_the_narrower_model(tp):
    for model in cases():
        narrow = parameter_table(local_model(model, tp))
        for name, spec in parameter_table(model).items():
            assert {shard.shape for shard in shards(spec, tp)} == {narrow[name].shape}, name


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_only_vocabularies_are_padded_and_only_at_their_end(tp):
    for model in cases():
        for spec in parameter_table(model).values():
            for shard in shards(spec, tp):
                assert shard.real[1:] == shard.shape[1:]
                assert shard.real[0] == shard.shape[0] or spec.over_vocab
        rows = local_rows(model.vocab_size, tp)
        assert rows % VOCAB_UNIT == 0
        assert (rows - VOCAB_UNIT) * tp < model.vocab_size <= rows * tp


def test_a_rank_may_hold_no_token_at_all():
    embedding = parameter_table(replace(MODEL, vocab_size=300))["embed.weight"]
    found = shards(embedding, 4)
    assert [shard.origin for shard in found] == [(0, 0), (128, 0), (256, 0), (300, 0)]
    assert [shard.real for shard in found] == [(128, 10), (128, 10), (44, 10), (0, 10)]


def test_heads_stay_whole_and_beside_the_keys_they_share():
    """Query heads 2 i and 2 i + 1 use key head i: rank r's queries must find its own keys."""
    model = replace(MODEL, kv_heads=6)
    table = parameter_table(model)
    for index in range(3):
        query, key, scale = (
            shards(table[f"blocks.1.attention.{name}"], 3)[index]
            for name in ("query.weight", "key.weight", "s_qk.value")
        )
        assert (query.origin, query.shape) == ((index * 8, 0), (8, 10))
        assert (key.origin, key.shape) == ((index * 4, 0), (4, 10))
        assert (scale.origin, scale.shape) == ((index * 8,), (8,))


def test_one_rank_keeps_the_model_as_it_is():
    assert local_model(MODEL, 1) == MODEL
    assert local_rows(97, 1) == 97


@pytest.mark.parametrize(
    ("changes", "tp", "message"),
    [
        ({}, 5, "parallel.tp = 5 does not divide model.heads = 12"),
        ({"kv_heads": 2}, 4, "parallel.tp = 4 does not divide model.kv_heads = 2"),
        ({"ffn_width": 37}, 2, "parallel.tp = 2 does not divide model.ffn_width = 37"),
    ],
)
def test_what_tp_does_not_divide_is_refused(changes, tp, message):
    with pytest.raises(ValueError, match=message):
        local_model(replace(MODEL, **changes), tp)
