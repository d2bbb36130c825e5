"""Bytes of a step's collectives: by formula, and counted."""

import json
from dataclasses import replace

import pytest

from benchmarks.traffic import Traffic as Counted
from megatron_ngpt.config import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.estimate.volume import Traffic, sent_by_axis, step_traffic
from megatron_ngpt.mesh.degrees import Degrees
from tests.distributed import run
from tests.estimate.measuring import engine_on, some_batch
from tests.schedules import ZBV

MODEL = ModelConfig(
    width=64, layers=3, heads=4, kv_heads=2, head_dim=16, ffn_width=160, vocab_size=512
)
LEFT_OUT = 64  # bytes: gradient norm, loss, overflow flag
PER_TOKEN = 0.03  # of a tensor-parallel step: the vocab-parallel loss, gradients of alpha


def _config(dp: int = 1, stage=1, dtype="bf16", recompute=False, zero="", **parallel) -> Config:
    return Config(
        model=MODEL,
        parallel=ParallelConfig(**parallel),
        optim=OptimConfig(zero_stage=stage),
        data=DataConfig(seq_len=16),
        train=TrainConfig(global_batch=6 * dp, micro_batch=2, dtype=dtype, recompute=recompute),
        engine=EngineConfig(deepspeed_overrides=zero),
    )


def _count(mesh, configs):
    """Bytes of the second step, counted and by formula."""
    found = []
    for config in configs:
        engine = engine_on(mesh, config)
        batch = some_batch(config, engine.mesh.degrees.dp)
        engine.train_step(batch[..., :-1], batch[..., 1:], 0.01)
        with Counted() as counted:
            engine.train_step(batch[..., :-1], batch[..., 1:], 0.01)
        traffic = step_traffic(config, engine.mesh.degrees, engine.mesh.index("pp"))
        found.append((sum(counted.bytes.values()), sum(t.size for t in traffic)))
        engine.deepspeed.destroy()
    return found


@pytest.fixture
def partitioned(tmp_path):
    """Files of overrides: stage 3 lets go of nearly everything; and does so after forward, too."""
    small = {"stage3_param_persistence_threshold": 1000}
    eager = {**small, "stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 1000}
    paths = []
    for name, zero in (("small", small), ("eager", eager)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"zero_optimization": zero}))
    return list(map(str, paths))


def test_data_parallel(partitioned):
    configs = [_config(2, stage, dtype) for stage in range(3) for dtype in ("fp32", "bf16")]
    configs += [_config(2, 3, dtype, zero=z) for z in partitioned for dtype in ("fp32", "bf16")]
    for config, (counted, formula) in zip(configs, run(2, _count, configs)[0], strict=True):
        assert formula == pytest.approx(counted, abs=LEFT_OUT), config


def test_tensor_and_pipeline_parallel():
    configs = [_config(tp=2), _config(tp=2, dtype="fp32"), _config(tp=2, recompute=True)]
    configs += [_config(pp=2), _config(pp=2, schedule="interleaved"), _config(pp=2, schedule=ZBV)]
    configs[-1] = replace(configs[-1], model=replace(MODEL, layers=4))
    configs[-2] = replace(configs[-2], model=replace(MODEL, layers=4))
    for rank in run(2, _count, configs):
        for config, (counted, formula) in zip(configs, rank, strict=True):
            left_out = PER_TOKEN if config.parallel.tp > 1 else 0
            assert formula == pytest.approx(counted, rel=left_out, abs=LEFT_OUT), config


def test_tensor_parallel_in_pieces():
    config = _config(tp=2)
    pieces = [{"mlp_tile": 3}, {"loss_chunk": 6}, {"mlp_tile": 3, "recompute": True}]
    kept = [("all_gather",), ("reduce_scatter",), ("all_gather", "reduce_scatter", "matmul")]
    pieces += [{"recompute": True, "recompute_keep": names} for names in kept]
    pieces.append({"recompute": True, "recompute_keep": kept[-1], "mlp_tile": 3})
    configs = [replace(config, train=replace(config.train, **piece)) for piece in pieces]
    for rank in run(2, _count, configs):
        for config, (counted, formula) in zip(configs, rank, strict=True):
            assert formula == pytest.approx(counted, rel=PER_TOKEN, abs=LEFT_OUT), config


def test_context_parallel():
    """What a rank exchanges, in whole buffers, and what it sends round the ring."""
    configs = [_config(cp=4, ulysses=u, recompute=again) for u in (1, 2) for again in (False, True)]
    configs += [_config(stage=3, dtype="fp32", cp=4, ulysses=2), _config(pp=2, cp=2, ulysses=1)]
    for names in (("all_to_all",), ("attention",), ("attention", "all_to_all")):
        config = _config(recompute=True, cp=4, ulysses=2)
        configs.append(replace(config, train=replace(config.train, recompute_keep=names)))
    for rank in run(4, _count, configs):
        for config, (counted, formula) in zip(configs, rank, strict=True):
            assert formula == pytest.approx(counted, abs=LEFT_OUT), config


def test_what_leaves_a_rank():
    """A ring passes on all but its own share, twice for an all-reduce."""
    degrees = Degrees(pp=2, dp=4, cp=1, tp=2)
    assert Traffic("dp", "all-reduce", 800).sent(degrees) == 1200
    assert Traffic("dp", "all-gather", 800).sent(degrees) == 600
    assert Traffic("tp", "reduce-scatter", 800).sent(degrees) == 400
    assert Traffic("pp", "send", 800).sent(degrees) == 800


def test_by_axis_and_nothing_alone():
    config = _config(2, tp=2)
    assert sent_by_axis(config, Degrees(pp=1, dp=2, cp=1, tp=2), 0).keys() == {"dp", "tp"}
    assert sent_by_axis(config, Degrees(pp=1, dp=1, cp=1, tp=1), 0) == {}
