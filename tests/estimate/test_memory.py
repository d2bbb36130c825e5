"""The worst moment of a step, against all storages alive in a real one."""

import json
from dataclasses import replace

import pytest

from megatron_ngpt.config import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.estimate.memory import busiest, rank_memory
from megatron_ngpt.mesh.degrees import Degrees
from tests.distributed import run
from tests.estimate.measuring import peak_bytes
from tests.schedules import SCHEDULES

MODEL = ModelConfig(
    width=64, layers=4, heads=4, kv_heads=2, head_dim=16, ffn_width=160, vocab_size=200
)
WIDE = replace(MODEL, layers=2, vocab_size=3000)  # the head is most of it
TOLERANCE = 0.15
PIECES = (
    {"loss_chunk": 16},
    {"loss_chunk": 16, "mlp_tile": 16},
    {"loss_chunk": 16, "recompute": True, "recompute_keep": ("attention",)},
    {"loss_chunk": 16, "recompute": True, "recompute_keep": ("attention", "matmul")},
    {"loss_chunk": 16, "mlp_tile": 16, "recompute": True, "recompute_keep": ("matmul",)},
    {"loss_chunk": 16, "mlp_tile": 16, "recompute": True},
)


@pytest.fixture
def overrides(tmp_path) -> str:
    """Buckets as small against this model as the default ones are against a real one."""
    path = tmp_path / "overrides.json"
    zero = {"reduce_bucket_size": 60_000, "stage3_param_persistence_threshold": 1000}
    path.write_text(json.dumps({"zero_optimization": zero}))
    return str(path)


def _config(overrides: str, model=MODEL, accumulate=2, dp=1, train=None, **parallel) -> Config:
    stage = parallel.pop("stage", 1)
    return Config(
        model=model,
        parallel=ParallelConfig(**parallel),
        optim=OptimConfig(zero_stage=stage),
        data=DataConfig(seq_len=128),
        train=TrainConfig(
            **{"global_batch": 2 * accumulate * dp, "micro_batch": 2, "dtype": "bf16"}
            | (train or {})
        ),
        engine=EngineConfig(deepspeed_overrides=overrides, ops="reference"),
    )


def _peaks(mesh, configs):
    return [peak_bytes(mesh, config) for config in configs]


def _compare(world_size: int, configs: list[Config]) -> None:
    by_rank = run(world_size, _peaks, configs)
    for index, config in enumerate(configs):
        degrees = Degrees.of(config.parallel, world_size)
        for rank, peaks in enumerate(by_rank):
            told = rank_memory(config, degrees, degrees.coordinates(rank)["pp"])
            assert told.total == pytest.approx(peaks[index], rel=TOLERANCE), (rank, config, told)


def test_one_rank(overrides):
    gpt = replace(MODEL, architecture="gpt")
    again = {"recompute": True}
    _compare(
        1,
        [
            _config(overrides),
            _config(overrides, train={"dtype": "fp32"}),
            _config(overrides, train=again),
            _config(overrides, model=gpt),
            _config(overrides, model=gpt, train={"dtype": "fp32", **again}),
            _config(overrides, model=WIDE),
            *(_config(overrides, model=WIDE, train=pieces) for pieces in PIECES),
            _config(overrides, model=replace(MODEL, mlp="relu2", ffn_width=400)),
            _config(overrides, model=replace(gpt, mlp="relu2", ffn_width=400)),
        ],
    )


def test_two_ranks(overrides):
    stages = [_config(overrides, dp=2, stage=stage) for stage in range(4)]
    shards = [_config(overrides, model=model, tp=2) for model in (MODEL, WIDE)]
    pipelines = [
        _config(overrides, accumulate=8, pp=2, schedule=schedule) for schedule in SCHEDULES
    ]
    contexts = [_config(overrides, cp=2, ulysses=ulysses) for ulysses in (1, 2)]
    _compare(2, stages + shards + pipelines + contexts)


@pytest.mark.slow
def test_four_ranks(overrides):
    _compare(
        4,
        [
            _config(overrides, accumulate=4, tp=2, pp=2),
            _config(overrides, accumulate=4, dp=2, pp=2, train={"recompute": True}),
            _config(overrides, accumulate=2, dp=2, tp=2, stage=3),
        ],
    )


def test_the_busiest_rank_is_the_first_of_a_1f1b_pipeline_and_the_last_with_a_large_vocabulary():
    parallel, train = {"pp": 4}, {"global_batch": 16, "micro_batch": 1}
    degrees = Degrees(pp=4, dp=1, cp=1, tp=1)
    config = _config("", replace(MODEL, layers=8), train=train, **parallel)
    index, memory = busiest(config, degrees)
    assert index == 0
    assert memory == rank_memory(config, degrees, 0)
    huge = _config("", replace(MODEL, layers=8, vocab_size=200_000), train=train, **parallel)
    assert busiest(huge, degrees)[0] == 3
