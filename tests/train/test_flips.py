"""A flipped bit ends a run before it is saved, and the next start has nothing of it."""

from pathlib import Path

import pytest
import torch

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.run.checkpoints import checkpoints, read_progress
from megatron_ngpt.run.failed import BitsFlipped
from megatron_ngpt.run.faults import read_faults
from megatron_ngpt.train.loop import train
from tests.distributed import run
from tests.jobs import metrics
from tests.train.test_faults import by_hand, job

REAL = Engine.train_step
WHEN = {"by the step": (4, 1 << 3, False), "by the save": (4, 1 << 22, True), "nan": (3, 0, False)}
"""Step at which the bit flips, which one, and whether after the step; 0 makes a weight NaN."""


def _damaged(engine: Engine, bit: int) -> None:
    fragment = next(f for f in engine.masters.fragments if f.spec.name == "head.weight")
    if engine.mesh.rank == 1:
        bits = fragment.master.view(torch.int32)
        bits[3] = bits[3] ^ bit if bit else 0x7FC00000


def _run(mesh, corpus: str, folder: Path) -> dict:
    told = {}
    for name, (when, bit, after) in WHEN.items():
        settings = {"optim": {"zero_stage": 1}, "checkpoint": {"asynchronous": False}}
        config, own, stages, _ = job(corpus, folder / name, settings)
        calls = []

        def step(engine, *args, calls=calls, when=when, bit=bit, after=after):
            calls.append(1)
            if len(calls) == when and not after:
                _damaged(engine, bit)
                if not bit:
                    engine.masters.deepspeed.optimizer.update_lp_params()
            result = REAL(engine, *args)
            if len(calls) == when and after:
                _damaged(engine, bit)
            return result

        Engine.train_step = step
        try:
            with pytest.raises(BitsFlipped) as error:
                train(config, Engine(config, own), stages, ())
        finally:
            Engine.train_step = REAL
        saved = read_progress(checkpoints(Path(config.checkpoint_dir))[0]).step
        train(config, Engine(config, own), stages, ())
        told[name] = str(error.value), saved
    return told | {"expected": by_hand(config, own, stages, [0, 1, 2, 3])[0]}


def test_a_run_ends_before_it_saves_a_flipped_bit(toy_corpus, tmp_path):
    both = run(2, _run, toy_corpus, tmp_path)
    for name in WHEN:
        for told in both:
            message, saved = told[name]
            assert "rank 1 on " in message, name
            assert "head.weight, row " in message, name
            assert "rank 0 on " not in message
            assert saved == 2, name
        (fault,) = read_faults(tmp_path / name)
        assert (fault.action, fault.ranks, fault.parameters) == ("stop", (1,), ("head.weight",))
        found = [(record["loss"], record["grad_norm"]) for record in metrics(tmp_path / name)]
        assert found == both[0]["expected"], "the next start goes on as if nothing had been"
