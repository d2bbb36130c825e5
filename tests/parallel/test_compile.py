"""train.compile changes the speed of a topology and nothing else."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ngpt.config import Config, LoggingConfig, TrainConfig
from megatron_ngpt.parallel.compiled import keep_compiled
from tests.distributed import run
from tests.parallel.training import Case, build, config_of, share, some_tokens

STEPS = 5
CASES = [
    Case(tp=2, zero=3, micro=12, recompute=True),
    Case(pp=2, schedule="interleaved"),
]


def _train_both(mesh, cases):
    """Per case: losses of eager blocks, of compiled ones, and whether these were compiled."""
    return [(_losses(mesh, c, False), _losses(mesh, c, True)) for c in cases]


def _losses(mesh, case, compiled):
    config = config_of(case)
    config = replace(config, train=replace(config.train, compile=compiled))
    engine = build(mesh, config)
    blocks = [b for part in engine.deepspeed.module.parts for b in part.blocks.values()]
    assert all((b._compiled_call_impl is not None) == compiled for b in blocks)
    tokens = some_tokens(STEPS)
    losses = [engine.train_step(*share(engine, rows), lr=0.01).loss for rows in tokens]
    engine.deepspeed.destroy()
    torch.compiler.reset()
    return losses


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
def test_compiled_blocks_train_like_eager_ones():
    for told in run(2, _train_both, CASES, timeout=900):
        for case, (eager, compiled) in zip(CASES, told, strict=True):
            assert compiled == pytest.approx(eager, abs=1e-5), case
            assert eager[0] - eager[-1] > 0.05


def test_where_compiled_blocks_are_kept(monkeypatch, tmp_path):
    """Beside the run, where a requeued job looks, unless somebody said otherwise."""
    logging = LoggingConfig(dir=str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    found = keep_compiled(Config(logging=logging))
    assert found.parent == tmp_path / "compile_cache"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(found)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    asked = TrainConfig(compile_cache=str(tmp_path / "shared"))
    assert keep_compiled(Config(logging=logging, train=asked)).parent == tmp_path / "shared"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert keep_compiled(Config(logging=logging)) == Path("/elsewhere")


def _start(mesh, folder):
    """What of torch's caches one start finds, and how often its graph breaks."""
    from torch._dynamo.utils import counters

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    config = config_of(Case())
    engine = build(mesh, replace(config, train=replace(config.train, compile=True)))
    loss = engine.train_step(*share(engine, some_tokens(1)[0]), lr=0.01).loss
    engine.close()
    inductor = counters["inductor"]
    return (
        inductor["fxgraph_cache_hit"],
        inductor["fxgraph_cache_miss"],
        len(counters["graph_break"]),
        loss,
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
def test_a_second_start_compiles_nothing(tmp_path):
    """Two ranks fill one empty folder at the same time; the next two find everything there."""
    first = run(2, _start, str(tmp_path), timeout=900)
    again = run(2, _start, str(tmp_path), timeout=900)
    for (_, missed, broken, loss), (hit, missing, _, same) in zip(first, again, strict=True):
        assert (missed > 0, broken) == (True, 0)
        assert (hit > 0, missing) == (True, 0)
        assert loss == same
