"""Weights, gradients and optimizer state: counted in engines, equal to the byte."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from megatron_ngpt.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.estimate.state import RankState
from tests.distributed import run
from tests.estimate.measuring import engine_on, gradient_bytes, some_batch, state_bytes
from tests.schedules import ZBV

# no size divides by 2 or 3 more often than it must
MODEL = ModelConfig(
    width=30, layers=3, heads=6, kv_heads=2, head_dim=10, ffn_width=38, vocab_size=61
)


class Case(NamedTuple):
    """One engine; dp is what the other degrees leave."""

    stage: int
    dtype: str
    tp: int = 1
    pp: int = 1
    schedule: str = "1f1b"
    architecture: str = "ngpt"
    optimizer: str = "adamw"

    def config(self, world_size: int) -> Config:
        dp = world_size // (self.tp * self.pp)
        return Config(
            model=replace(MODEL, architecture=self.architecture),
            parallel=ParallelConfig(tp=self.tp, pp=self.pp, schedule=self.schedule),
            optim=OptimConfig(zero_stage=self.stage, optimizer=self.optimizer),
            data=DataConfig(seq_len=12),
            train=TrainConfig(global_batch=4 * self.pp * dp, micro_batch=2, dtype=self.dtype),
        )


ALONE = [Case(stage, dtype) for stage in range(4) for dtype in ("fp32", "bf16")]
CASES = {
    1: [*ALONE, *(Case(1, dtype, optimizer="muon") for dtype in ("fp32", "bf16"))],
    2: [
        *ALONE,
        Case(1, "bf16", architecture="gpt"),
        Case(1, "bf16", tp=2),
        Case(1, "fp32", pp=2),
        Case(1, "bf16", pp=2, schedule=ZBV),
    ],
    3: ALONE,
    4: [
        *(Case(stage, "bf16", tp=2) for stage in range(4)),
        *(Case(stage, "bf16", pp=2) for stage in range(2)),
        Case(1, "fp32", tp=2, pp=2),
    ],
    8: [Case(1, "bf16", tp=2, pp=2), Case(0, "fp32", tp=2, pp=2, schedule="interleaved")],
}


def _count(mesh, cases):
    """Per case: what this rank holds, and what the estimate says."""
    found = []
    for case in cases:
        config = case.config(mesh.degrees.dp)
        engine = engine_on(mesh, config)
        batch = some_batch(config, engine.mesh.degrees.dp)
        engine.train_step(batch[..., :-1], batch[..., 1:], 0.01)
        counted = state_bytes(engine) | {"gradients": gradient_bytes(engine, batch)}
        state = RankState.of(config, engine.mesh.degrees, engine.mesh.index("pp"))
        estimate = {
            "weights": state.weights,
            "optimizer": state.optimizer,
            "gradients": state.gradients(engine.mesh.index("dp")),
        }
        found.append((counted, estimate, state.gradients()))
        engine.deepspeed.destroy()
    return found


@pytest.mark.parametrize(
    "world_size", [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4, 8))]
)
def test_equal_to_the_byte(world_size):
    cases = CASES[world_size]
    by_rank = run(world_size, _count, cases)
    for index, case in enumerate(cases):
        for rank, found in enumerate(by_rank):
            counted, estimate, _ = found[index]
            assert counted == estimate, (case, rank)
        # one pipeline index: "the largest" is that of some rank
        if case.pp == 1:
            largest = max(found[index][0]["gradients"] for found in by_rank)
            assert by_rank[0][index][2] == largest, case
