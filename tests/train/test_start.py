"""A start imports no more of torch than a run needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.jobs import words

# torch's compilers, and what only checkpoints need: some four seconds of CPU time
UNUSED = ("torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "sympy")
FIRST_STEP = f"""
import sys, torch, deepspeed
own = [name for name in {UNUSED} if name in sys.modules]
import pretrain_ngpt
from megatron_ngpt.engine.engine import Engine
step = Engine.train_step

def watched(self, *args):
    done = step(self, *args)
    print("imported", [name for name in {UNUSED} if name in sys.modules and name not in own])
    return done

Engine.train_step = watched
pretrain_ngpt.finish(pretrain_ngpt.run())
"""


@pytest.mark.parametrize("stage", [1])
def test_first_step_without_compilers(toy_corpus, tmp_path, stage):
    arguments = [*words(toy_corpus, tmp_path), "--train.stop_at", "1", "--optim.zero_stage", stage]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout
