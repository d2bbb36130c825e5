"""train.compile changes the speed of a topology and nothing else."""

import shutil
from dataclasses import replace

import pytest
import torch

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
