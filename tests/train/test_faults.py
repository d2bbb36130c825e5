"""Steps that are refused: whatever is left out, the rest is what it would have been without."""

import json
from pathlib import Path

import pytest
import torch

import pretrain_ngpt
from megatron_ngpt.config import parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.loader import train_loader
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.ops.linear import Embedding
from megatron_ngpt.run.checkpoints import checkpoints, read_progress
from megatron_ngpt.run.faults import read_faults
from megatron_ngpt.train.loop import train
from megatron_ngpt.train.watch import Watch
from tests.distributed import CPU, run
from tests.jobs import metrics, whole_state, words

SHAPE = {"width": 28, "heads": 2, "kv_heads": 2, "ffn_width": 38}
STEPS, BATCH, LENGTH = 4, 12, 16
REAL = Engine.train_step


class Fault:
    """Spoils what one rank computes in some calls of ``train_step``, counted from 1."""

    def __init__(self, kind: str, calls: set[int], dies_at: int = 0) -> None:
        self.kind, self.calls, self.dies_at, self.count = kind, calls, dies_at, 0

    def __enter__(self):
        fault = self

        def step(engine, *args):
            fault.count += 1
            if fault.count == fault.dies_at:
                raise KeyboardInterrupt
            hooks = fault._hooks(engine) if fault.count in fault.calls else []
            try:
                return REAL(engine, *args)
            finally:
                for hook in hooks:
                    hook.remove()

        Engine.train_step = step
        return self

    def __exit__(self, *_):
        Engine.train_step = REAL

    def _hooks(self, engine: Engine) -> list:
        """On the last rank: of a pipeline it has the loss, of others the embedding, too."""
        if engine.mesh.rank != torch.distributed.get_world_size() - 1:
            return []
        modules = engine.deepspeed.module.modules()
        embedding = next((m for m in modules if isinstance(m, Embedding)), None)
        if self.kind == "gradient" and embedding:
            return [embedding.register_forward_hook(_bad_gradient)]
        factor = 3.0 if self.kind == "spike" else float("nan")
        head = [m for m in engine.deepspeed.module.modules() if type(m).__name__ == "NGPT"][-1]
        return [head.register_forward_hook(lambda _m, _i, loss: loss * factor)]


def _bad_gradient(_module, _inputs, output) -> None:
    output.register_hook(lambda gradient: gradient * float("nan"))


def job(corpus: str, folder: Path, sections: dict):
    """Configuration, mesh and corpora."""
    made = {"model": SHAPE, **sections, "checkpoint": {"every": 2, "keep": 9}}
    made["checkpoint"] |= sections.get("checkpoint", {})
    made["train"] = {"steps": STEPS, **sections.get("train", {})}
    config = parse_config(words(corpus, folder, **made))
    Path(config.checkpoint_dir).mkdir(parents=True, exist_ok=True)
    degrees = Degrees.of(config.parallel, torch.distributed.get_world_size())
    return config, Mesh.build(degrees, CPU), *open_corpora(config.data)


def by_hand(config, mesh, stages, numbers: list[int], engine: Engine | None = None, done: int = 0):
    """Losses and norms of steps with these batches of the stream, and the engine after them."""
    engine, told = engine or Engine(config, mesh), []
    for step, number in enumerate(numbers, done):
        where = {"dp": mesh.degrees.dp, "dp_rank": mesh.index("dp"), "consumed": number * BATCH}
        with train_loader(config, stages, **where) as loader:
            batch, _ = next(loader)
        result = engine.train_step(*batch, learning_rate(config, step))
        told.append((result.loss, result.grad_norm))
    return told, engine


def values(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in metrics(folder)]


CASES = {
    "0": ({"optim": {"zero_stage": 0}}, "gradient"),
    "1 bf16": ({"optim": {"zero_stage": 1}, "train": {"dtype": "bf16"}}, "gradient"),
    "1 loss": ({"optim": {"zero_stage": 1}}, "loss"),
    "2 bf16": ({"optim": {"zero_stage": 2}, "train": {"dtype": "bf16"}}, "loss"),
    "2": ({"optim": {"zero_stage": 2}}, "gradient"),
    "3": ({"optim": {"zero_stage": 3}}, "gradient"),
    "3 loss": ({"optim": {"zero_stage": 3}, "train": {"dtype": "bf16"}}, "loss"),
    "tp": ({"parallel": {"tp": 2}}, "gradient"),
    "pp": ({"parallel": {"pp": 2}}, "loss"),
    "cp": ({"parallel": {"cp": 2}}, "loss"),
}


FEW = ("0", "1 bf16", "3 loss", "pp")
REST = tuple(set(CASES) - set(FEW))


def _skipped(mesh, corpus: str, folder: Path, names: tuple[str, ...]) -> dict:
    """The first batch of all is refused, and the third one."""
    told = {}
    for name in names:
        sections, kind = CASES[name]
        sections = {**sections, "train": {"on_fault": "skip", **sections.get("train", {})}}
        config, own, stages, _ = job(corpus, folder / name, sections)
        engine = Engine(config, own)
        with Fault(kind, {1, 3}):
            train(config, engine, stages, ())
        expected, other = by_hand(config, own, stages, [1, 3, 4, 5])
        mine, theirs = whole_state(engine), whole_state(other)
        told[name] = expected, all(torch.equal(mine[key], theirs[key]) for key in mine)
    return told


@pytest.mark.parametrize("names", [FEW, pytest.param(REST, marks=pytest.mark.slow)])
def test_a_run_that_skips_is_one_that_never_had_the_batch(toy_corpus, tmp_path, names):
    for told in run(2, _skipped, toy_corpus, tmp_path, names):
        for name, (expected, same) in told.items():
            assert values(tmp_path / name) == expected, name
            assert same, f"{name}: weights and averages, to the bit"
    for name in names:
        sections, kind = CASES[name]
        records, (first, third) = metrics(tmp_path / name), read_faults(tmp_path / name)
        assert [r["tokens"] for r in records] == [n * BATCH * LENGTH for n in (2, 4, 5, 6)]
        assert [r["faults"] for r in records] == [1, 2, 2, 2]
        assert (first.step, third.step, third.action) == (1, 2, "skip")
        assert third.samples == (2 * BATCH, 3 * BATCH)
        assert third.left_out == ((2 * BATCH * LENGTH, 3 * BATCH * LENGTH),)
        if kind == "loss":
            assert third.problem == "loss is nan"
            # ranks that share a model without ZeRO find what follows in their own gradients
            assert third.ranks == ((0, 1) if name in ("tp", "pp") else (1,))
            half = 18 if not sections.get("parallel") else 12  # rank 1 has the second half
            assert third.micro_batches[0]["samples"] == [12 + half, 12 + half + 2]
        newest = checkpoints(tmp_path / name / "checkpoints")[0]
        assert read_progress(newest).left_out == (*first.left_out, *third.left_out)


def _killed(mesh, corpus: str, folder: Path) -> list:
    """A batch after the checkpoint of step 2 is left out; the run dies, and starts without it."""
    # a process that dies takes its save along, what stands for it here would not
    settings = {"train": {"on_fault": "skip"}, "checkpoint": {"asynchronous": False}}
    config, own, stages, _ = job(corpus, folder, settings)
    with pytest.raises(KeyboardInterrupt), Fault("gradient", {4}, dies_at=5):
        train(config, Engine(config, own), stages, ())
    train(config, Engine(config, own), stages, ())
    return by_hand(config, own, stages, [0, 1, 2, 4])[0]


def test_what_is_left_out_stays_so_when_the_run_dies(toy_corpus, tmp_path):
    expected = run(1, _killed, toy_corpus, tmp_path)[0]
    assert values(tmp_path) == expected
    assert [fault.step for fault in read_faults(tmp_path)] == [4]


def _rolled_back(mesh, corpus: str, folder: Path) -> list:
    """Step 4, a spike, leads back to the checkpoint of step 2; then step 1 of another run."""
    settings = {"on_fault": "rollback", "spike_threshold": 5, "spike_window": 8, "steps": 12}
    config, own, stages, _ = job(corpus, folder / "late", {"train": settings})
    with Fault("spike", {10}):
        pretrain_ngpt._train(config, own.degrees, CPU, stages, (), Watch())
    expected, engine = by_hand(config, own, stages, list(range(8)))
    later = by_hand(config, own, stages, [10, 11, 12, 13], engine, done=8)[0]
    early, own, stages, _ = job(corpus, folder / "early", {"train": {"on_fault": "rollback"}})
    with Fault("gradient", {2}):
        pretrain_ngpt._train(early, own.degrees, CPU, stages, (), Watch())
    return [expected + later, by_hand(early, own, stages, [2, 3, 4, 5])[0]]


def test_a_rollback_leaves_out_what_led_to_the_fault(toy_corpus, tmp_path):
    late, early = run(2, _rolled_back, toy_corpus, tmp_path)[0]
    assert values(tmp_path / "late") == late
    assert values(tmp_path / "early") == early
    (fault,) = read_faults(tmp_path / "late")
    assert "deviations above the median" in fault.problem
    assert (fault.step, fault.back_to) == (10, 8)
    assert fault.left_out == ((8 * BATCH * LENGTH, 10 * BATCH * LENGTH),)
    undone = (tmp_path / "late" / "metrics_undone.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in undone] == [9]
    (fault,) = read_faults(tmp_path / "early")
    assert fault.back_to == 0, "there was no checkpoint yet"


def _again_and_again(mesh, corpus: str, folder: Path) -> str:
    settings = {"on_fault": "skip", "fault_limit": 2}
    config, own, stages, _ = job(corpus, folder, {"train": settings})
    with (
        Fault("gradient", {3, 4, 5, 6}),
        pytest.raises(FloatingPointError) as error,
    ):
        train(config, Engine(config, own), stages, ())
    return str(error.value)


def test_after_so_many_faults_the_run_stops(toy_corpus, tmp_path):
    told = run(1, _again_and_again, toy_corpus, tmp_path)[0]
    assert "grad_norm is nan at step 3" in told
    assert "train.fault_limit = 2 faults in 1000 steps are used up" in told
    assert "the checkpoint that leads there was moved to " in told
    assert [fault.action for fault in read_faults(tmp_path)] == ["skip", "skip", "stop"]
    assert len(metrics(tmp_path)) == 2
