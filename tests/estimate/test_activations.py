"""What forward keeps for backward, against what autograd really saves."""

from dataclasses import replace
from itertools import product, starmap
from typing import Any

import pytest
import torch

from megatron_ngpt.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from megatron_ngpt.estimate.activations import part_kept
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.part import Part
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.parallel.apply import build_parts, table_parameters
from megatron_ngpt.parallel.context import shared_inputs
from megatron_ngpt.parallel.stages import stage_map
from tests.distributed import CPU, run
from tests.estimate.measuring import alive_bytes, kept_bytes

MODEL = ModelConfig(
    width=48, layers=3, heads=4, kv_heads=2, head_dim=16, ffn_width=160, vocab_size=500
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = 0.03  # per-vector terms and a few scalars per token; they shrink with tokens and width


def _config(
    architecture: str, dtype: str, recompute: bool, tp: int = 1, rows: int = 2, **model: Any
) -> Config:
    model = {"maps": 0, "map_dim": 0, "head_norm_eps": 0.0, **model}
    return Config(
        model=replace(MODEL, architecture=architecture, **model),
        parallel=ParallelConfig(tp=tp),
        data=DataConfig(seq_len=40),
        train=TrainConfig(dtype=dtype, micro_batch=rows, recompute=recompute),
    )


def _kept(mesh: Mesh, config: Config, part: Part) -> tuple[int, int]:
    """Bytes measured and estimated, in one rank's part of the model."""
    mesh = Mesh.build(Degrees.of(config.parallel, mesh.degrees.dp), CPU)
    built = build_parts(config, mesh, [part], DTYPES[config.train.dtype], sdpa_attention)
    table = parameter_table(config.model)
    for name, parameter in table_parameters(built):
        torch.nn.init.normal_(parameter.data, std=0.02)
        if config.train.dtype == "bf16" and not table[name].keeps_fp32:
            parameter.data = parameter.data.bfloat16()
    rows, length = config.train.micro_batch, config.data.seq_len
    tokens = torch.randint(config.model.vocab_size, (rows, length))
    inputs = shared_inputs(config, mesh, tokens, tokens)
    measured = alive_bytes if config.train.recompute_keep else kept_bytes
    return measured(built.train(), *inputs), part_kept(config, mesh.degrees.tp, part)


def _kept_each(mesh, configs):
    return [_kept(mesh, config, Part(range(3))) for config in configs]


@pytest.mark.parametrize("tp", [1, 2])
def test_as_autograd_saves_them(tp):
    configs = [
        _config(architecture, dtype, recompute, tp, rows)
        for architecture in ("ngpt", "gpt")
        for dtype in ("fp32", "bf16")
        for recompute in (False, True)
        for rows in (1, 2)
    ]
    configs += [
        _config(architecture, dtype, False, tp, mlp="relu2")
        for architecture in ("ngpt", "gpt")
        for dtype in ("fp32", "bf16")
    ]
    configs += [
        _config(architecture, dtype, False, tp, attention=kind, kv_heads=kv_heads)
        for architecture in ("ngpt", "gpt")
        for dtype in ("fp32", "bf16")
        for kind, kv_heads in (("differential", 2), ("ensemble", 2), ("ensemble", 4))
    ]
    configs += [_config("gpt", "bf16", False, tp, gpt_qk_norm=True)]
    for config, (kept, estimate) in zip(configs, run(tp, _kept_each, configs)[0], strict=True):
        assert estimate == pytest.approx(kept, rel=TOLERANCE), config


def test_a_rank_that_shares_sequences_keeps_its_share():
    """Ulysses also keeps what attention gave before it was exchanged back."""
    configs = [
        replace(config, parallel=ParallelConfig(cp=2, ulysses=ulysses))
        for config in starmap(_config, product(("ngpt", "gpt"), ("fp32", "bf16"), (False, True)))
        for ulysses in (1, 2)
    ]
    for config, (kept, estimate) in zip(configs, run(2, _kept_each, configs)[0], strict=True):
        assert estimate == pytest.approx(kept, rel=TOLERANCE), config


PIECES = {
    "tiles": {"mlp_tile": 7},
    "chunks": {"loss_chunk": 12},
    "all": {"mlp_tile": 7, "loss_chunk": 12},
    "all again": {"recompute": True, "mlp_tile": 7, "loss_chunk": 12},
}


@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_computed_again_is_not_kept(tp):
    """So little is left that ids of chunks, 24 bytes a token with tp, are 3.4 % of it."""
    configs = [
        replace(config, train=replace(config.train, **settings))
        for settings in PIECES.values()
        for config in (_config(kind, "bf16", False, tp) for kind in ("ngpt", "gpt"))
    ]
    for config, (kept, estimate) in zip(configs, run(tp, _kept_each, configs)[0], strict=True):
        assert estimate == pytest.approx(kept, rel=0.05), config


def _keeping(*names: str, ulysses: int = 0, **settings: Any) -> list[Config]:
    """Blocks computed again, but for some ops; ``ulysses`` of two ranks that share sequences."""
    found = []
    for kind, dtype in product(("ngpt", "gpt"), ("fp32", "bf16")):
        config = _config(kind, dtype, True)
        train = replace(config.train, recompute_keep=names, **settings)
        parallel = ParallelConfig(cp=2, ulysses=ulysses) if ulysses else config.parallel
        found.append(replace(config, train=train, parallel=parallel))
    return found


def test_outputs_of_ops_are_kept():
    configs = [*_keeping("attention"), *_keeping("matmul"), *_keeping("attention", "matmul")]
    configs += _keeping("attention", "matmul", mlp_tile=7)
    for config, (kept, estimate) in zip(configs, run(1, _kept_each, configs)[0], strict=True):
        assert estimate == pytest.approx(kept, rel=0.05), config


def test_outputs_of_collectives_are_kept():
    configs = [*_keeping("all_to_all", ulysses=2), *_keeping("attention", ulysses=1)]
    configs += _keeping("attention", "all_to_all", ulysses=2)
    shared = ("all_gather", "reduce_scatter")
    pairs = [_keeping(*names) for names in (shared, shared[:1], (*shared, "matmul", "attention"))]
    configs += [replace(config, parallel=ParallelConfig(tp=2)) for pair in pairs for config in pair]
    for config, (kept, estimate) in zip(configs, run(2, _kept_each, configs)[0], strict=True):
        assert estimate == pytest.approx(kept, rel=0.05), config


def _embedding_and_two_layers(mesh):
    config = _config("ngpt", "bf16", False)
    return _kept(mesh, replace(config, model=MODEL), Part(range(2), first=True, last=True))


def test_a_stage_keeps_what_its_layers_keep():
    """The model of two layers is two thirds of the blocks of the one of three."""
    kept, estimate = run(1, _embedding_and_two_layers)[0]
    assert estimate == pytest.approx(kept, rel=TOLERANCE)
    config = _config("ngpt", "bf16", False)
    whole, block = part_kept(config, 1, Part(range(3))), part_kept(config, 1, Part(range(1)))
    assert whole - estimate == pytest.approx((whole - block) / 2)


def test_recomputation_keeps_one_hidden_state_a_layer():
    config = _config("ngpt", "bf16", True)
    deeper = replace(config, model=replace(MODEL, layers=30))
    tokens = 2 * 40
    grown = part_kept(deeper, 1, stage_map(deeper).parts[0]) - part_kept(
        config, 1, stage_map(config).parts[0]
    )
    assert grown == 27 * tokens * 48 * 2
