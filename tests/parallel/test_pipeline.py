"""Schedules: how many micro-batches each can run, and how often recomputation computes a block."""

from typing import Any

import pytest
import torch

from megatron_ngpt.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.parallel.plan import check_topology
from tests.distributed import run
from tests.parallel.training import build
from tests.schedules import ZBV

T, LAYERS, VOCABULARY = 4, 6, 19
MODEL = ModelConfig(width=8, layers=LAYERS, heads=2, ffn_width=12, vocab_size=VOCABULARY)
SCHEDULES = {
    "1f1b": {},
    "interleaved": {},
    "three a rank": {"schedule": "interleaved", "stages_per_rank": 3},
    "zero_bubble": {},
    ZBV: {},
}


def config_of(schedule: str, pp: int, micro_batches: int, **train: Any) -> Config:
    return Config(
        model=MODEL,
        parallel=ParallelConfig(pp=pp, **{"schedule": schedule, **SCHEDULES[schedule]}),
        data=DataConfig(seq_len=T),
        train=TrainConfig(global_batch=micro_batches, micro_batch=1, **train),
    )


def batch(micro_batches: int) -> torch.Tensor:
    """[micro_batches, 1, T + 1]."""
    generator = torch.Generator().manual_seed(4)
    return torch.randint(VOCABULARY, (micro_batches, 1, T + 1), generator=generator)


def accepted(pp: int) -> list[tuple[str, int]]:
    """Schedules and numbers of micro-batches that are not refused."""
    found = []
    for schedule in SCHEDULES:
        for count in range(1, 4 * pp + 2):
            try:
                check_topology(config_of(schedule, pp, count), Degrees(pp=pp, dp=1, cp=1, tp=1))
                found.append((schedule, count))
            except ValueError:
                pass
    return found


def _one_step(mesh, pp, cases):
    """Loss and gradient norm of each case's first step."""
    found = {}
    for schedule, count in cases:
        engine = build(mesh, config_of(schedule, pp, count))
        rows = batch(count)
        found[schedule, count] = engine.train_step(rows[..., :-1], rows[..., 1:], lr=0.01)
        engine.deepspeed.destroy()
    return found


@pytest.mark.parametrize("pp", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_number_of_micro_batches_that_is_accepted_runs(pp):
    cases = accepted(pp)
    for schedule in SCHEDULES:
        assert {count for name, count in cases if name == schedule} >= {2 * pp, 3 * pp, 4 * pp}
    model = NGPT(MODEL)
    initialise(model, parameter_table(MODEL), TrainConfig().seed)
    for answer in run(pp, _one_step, pp, cases):
        for (schedule, count), told in answer.items():
            rows = batch(count)[:, 0]
            model.zero_grad()
            loss = model(rows[:, :-1], rows[:, 1:])
            loss.backward()
            square = sum(p.grad.square().sum() for p in model.parameters())
            assert told.loss == pytest.approx(loss.item(), abs=1e-6), (schedule, count)
            assert told.grad_norm == pytest.approx(float(square.sqrt()), rel=1e-5)


def _computed(mesh, pp, micro_batches):
    """Per schedule: how often this rank's blocks were computed, by block and micro-batch."""
    found = {}
    for schedule in SCHEDULES:
        engine = build(mesh, config_of(schedule, pp, micro_batches, recompute=True))
        blocks = [b for part in engine.deepspeed.module.parts for b in part.blocks.values()]
        calls = []
        for block in blocks:
            block.attention.attend = _counting(block.attention.attend, calls)
        rows = batch(micro_batches)
        engine.train_step(rows[..., :-1], rows[..., 1:], lr=0.01)
        found[schedule] = len(calls) / len(blocks) / micro_batches
        engine.deepspeed.destroy()
    return found


def _counting(attend, calls):
    def counted(*args):
        calls.append(1)
        return attend(*args)

    return counted


def test_recomputation_computes_a_block_once_more_per_backward_pass():
    """Zero-bubble schedules have two backward passes, for inputs and for weights."""
    for told in run(2, _computed, 2, 6):
        for schedule in ("1f1b", "interleaved", "three a rank"):
            assert told[schedule] == 2
        for schedule in ("zero_bubble", ZBV):
            assert 2 <= told[schedule] <= 3
