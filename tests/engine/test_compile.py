"""train.compile changes the speed of a run and nothing else."""

import shutil
from dataclasses import replace

import pytest

from tests.distributed import run
from tests.engine.conftest import KINDS
from tests.engine.training import config_of, some_tokens, train_each

TOKENS = some_tokens(steps=3, global_batch=4)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
@pytest.mark.parametrize(
    ("kind", "stage", "world_size"),
    [("ngpt", 0, 1), ("ngpt", 1, 2), ("ngpt", 3, 2), ("gpt", 2, 1), ("bf16", 1, 1), ("bf16", 3, 2)],
)
def test_compiled_blocks_train_like_eager_ones(partitioned, kind, stage, world_size):
    overrides = partitioned if stage == 3 else ""
    eager = config_of(stage, batch=(4, 4 // world_size), overrides=overrides, **KINDS[kind])
    compiled = replace(eager, train=replace(eager.train, compile=True))
    both = run(world_size, train_each, {"eager": eager, "compiled": compiled}, TOKENS, timeout=550)
    one, two = both[0]["eager"], both[0]["compiled"]
    assert (one.compiled, two.compiled) == (False, True)
    # fp32: other fused sums; bf16: Inductor keeps in fp32 what eager rounds in between
    loss, norm = (2e-3, 0.02) if kind == "bf16" else (1e-6, 1e-6)
    assert two.losses == pytest.approx(one.losses, abs=loss)
    assert two.norms == pytest.approx(one.norms, abs=norm * max(one.norms))
    assert two.stale == []
    if kind != "gpt":
        assert max(two.off_sphere) <= 3e-7
