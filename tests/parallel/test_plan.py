from dataclasses import replace

import pytest

from megatron_ngpt.config import Config, ModelConfig, ParallelConfig, TrainConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.parallel.plan import check_topology

MODEL = ModelConfig(width=32, layers=8, heads=4, kv_heads=2, ffn_width=42, vocab_size=97)


def refused(world_size, batch, **parallel):
    """The complaint about a topology, or nothing."""
    train = TrainConfig(global_batch=batch[0], micro_batch=batch[1])
    config = Config(model=MODEL, train=train, parallel=ParallelConfig(**parallel))
    try:
        check_topology(config, Degrees.of(config.parallel, world_size))
    except ValueError as err:
        return str(err)
    return ""


@pytest.mark.parametrize(
    ("world_size", "batch", "parallel"),
    [
        (1, (4, 4), {}),
        (2, (4, 4), {"tp": 2}),
        (8, (8, 1), {"tp": 2, "pp": 2}),
        (4, (4, 1), {"pp": 4}),
        (4, (8, 1), {"pp": 4, "schedule": "zbv"}),
        (2, (2, 1), {"pp": 2, "schedule": "interleaved"}),
        (2, (1, 1), {"tp": 2, "schedule": "zbv"}),
        (8, (2, 1), {"cp": 4, "ulysses": 2}),
        (4, (1, 1), {"tp": 2, "cp": 2, "ulysses": 1}),
    ],
)
def test_possible(world_size, batch, parallel):
    assert refused(world_size, batch, **parallel) == ""


@pytest.mark.parametrize(
    ("world_size", "batch", "parallel", "parts"),
    [
        (3, (4, 1), {}, ["train.global_batch = 4", "1 * 3 = 3", "number of processes"]),
        (3, (3, 1), {"tp": 3}, ["parallel.tp = 3", "model.heads = 4", "choose a tp"]),
        (4, (4, 1), {"tp": 4}, ["parallel.tp = 4", "model.kv_heads = 2"]),
        (4, (4, 1), {"cp": 4}, ["parallel.ulysses = 4", "the 2 key heads", "set it to 2"]),
        (4, (4, 1), {"tp": 2, "cp": 2}, ["parallel.ulysses = 2", "the 1 key heads", "set it to 1"]),
        (10, (4, 1), {"pp": 10}, ["parallel.layers_per_stage", "model.layers = 8", "fewer stages"]),
        (4, (3, 1), {"pp": 4}, ["1f1b with 4 stages on parallel.pp = 4", "run 3", "at least 4"]),
        (8, (4, 1), {"pp": 4}, ["run 2 micro-batches", "raise train.global_batch"]),
        (2, (3, 1), {"pp": 2, "schedule": "zbv"}, ["zbv with 4 stages", "run 3", "at least 4"]),
        (2, (1, 1), {"pp": 2, "schedule": "interleaved"}, ["run 1 micro", "at least 2"]),
        (2, (5, 1), {"pp": 2, "schedule": "interleaved"}, ["run 5 micro", "multiple of 2"]),
        (2, (5, 1), {"pp": 2, "schedule": "zero_bubble"}, ["run 5 micro", "multiple of 2"]),
    ],
)
def test_impossible_is_refused_with_value_and_way_out(world_size, batch, parallel, parts):
    told = refused(world_size, batch, **parallel)
    assert all(part in told for part in parts), told


def test_nothing_is_asked_of_a_schedule_without_a_pipeline():
    wide = replace(MODEL, layers=1)
    config = Config(model=wide, parallel=ParallelConfig(schedule="zbv"), train=TrainConfig())
    check_topology(config, Degrees(pp=1, dp=1, cp=1, tp=1))
