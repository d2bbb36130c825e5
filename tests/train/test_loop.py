import itertools
import json
import time
from pathlib import Path

import pytest
import torch

from megatron_ngpt.config import parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.engine.checkpoint import checkpointer
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.ops.linear import Embedding
from megatron_ngpt.run.checkpoints import checkpoints
from megatron_ngpt.run.failed import SaveFailed
from megatron_ngpt.train.loop import train
from tests.distributed import run
from tests.jobs import metrics, train_on, words, write_corpus

WAYS = [(0, "bf16"), (1, "fp32"), (2, "bf16"), (3, "fp32")]


def values(folder: Path) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in metrics(folder)]


def _interrupted_or_not(mesh, corpus: str, folder: Path):
    """At one go, and stopped and started twice."""
    for stage, dtype in WAYS:
        name = f"{stage}_{dtype}"
        sections = {"optim": {"zero_stage": stage}, "checkpoint": {"every": 3}}
        train_on(mesh, words(corpus, folder / name, **sections, train={"dtype": dtype}))
        for stop_at in (2, 5, 0):
            own = {"dtype": dtype, "stop_at": stop_at}
            train_on(mesh, words(corpus, folder / f"{name}_stopped", **sections, train=own))


def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_to_the_bit(toy_corpus, tmp_path):
    run(2, _interrupted_or_not, toy_corpus, tmp_path)
    for stage, dtype in WAYS:
        name = f"{stage}_{dtype}"
        stopped = tmp_path / f"{name}_stopped"
        assert [record["step"] for record in metrics(stopped)] == list(range(1, 9))
        assert values(stopped) == values(tmp_path / name), name
        saved = [path.name for path in checkpoints(stopped / "checkpoints")]
        assert saved == ["step_00000008", "step_00000006", "step_00000005"], name


def _with_validation(mesh, corpus: str, folder: Path):
    train_on(mesh, words(corpus, folder / "never"))
    for every in (3, 1):
        evaluation = {"every": every, "steps": 2}
        train_on(mesh, words(corpus, folder / f"{every}", eval=evaluation))
    return mesh.degrees.dp


@pytest.mark.parametrize("dp", [1, 2])
def test_validation_comes_when_due_and_changes_nothing(toy_corpus, tmp_path, dp):
    run(dp, _with_validation, toy_corpus, tmp_path)
    never, third, always = (metrics(tmp_path / name) for name in ("never", "3", "1"))
    assert [r["step"] for r in third if "valid_loss" in r] == [3, 6, 8]
    assert [r["step"] for r in always if "valid_loss" in r] == list(range(1, 9))
    assert not [r for r in never if "valid_loss" in r]
    assert values(tmp_path / "never") == values(tmp_path / "3") == values(tmp_path / "1")
    losses = {r["step"]: r["valid_loss"] for r in always}
    assert {
        r["step"]: r["valid_loss"] for r in third if "valid_loss" in r
    }.items() <= losses.items()
    assert losses[8] < losses[4] < losses[1] - 0.2


def _blended(mesh, corpora: list[str], folder: Path):
    blend = json.dumps(
        [{"prefix": corpora[0], "weight": 3, "name": "a"}, {"prefix": corpora[1], "name": "b"}]
    )
    data = {"train": blend, "valid_fraction": 0.2}
    train_on(mesh, words("", folder / "blend", data=data, eval={"every": 4}))
    train_on(mesh, words(corpora[0], folder / "one", eval={"every": 4}))


def test_every_corpus_of_a_blend_has_its_own_validation_loss(toy_corpus, tmp_path):
    other = write_corpus(tmp_path, documents=30)
    run(1, _blended, [toy_corpus, other], tmp_path)
    evaluated = [r for r in metrics(tmp_path / "blend") if "valid_loss" in r]
    assert [r["step"] for r in evaluated] == [4, 8]
    for record in evaluated:
        a, b = record["valid_loss/a"], record["valid_loss/b"]
        assert a != b
        assert record["valid_loss"] == pytest.approx((3 * a + b) / 4, rel=1e-12)
    assert not [r for r in metrics(tmp_path / "one") if any("/" in name for name in r)]


def _apart(mesh, corpus: str, folder: Path):
    """Documents end all over: the same text evaluated in batches of 12, 6 and 4 sequences."""
    for batch, steps in ((12, 1), (6, 2), (4, 3)):
        train_on(
            mesh,
            words(
                corpus,
                folder / str(batch),
                data={"document_mask": True, "eod": 3},
                optim={"lr": 0},
                train={"steps": 1, "global_batch": batch, "micro_batch": 1},
                eval={"every": 1, "steps": steps},
            ),
        )


def test_validation_is_a_mean_over_targets_whatever_the_batch(toy_corpus, tmp_path):
    run(2, _apart, toy_corpus, tmp_path)
    one, *others = (metrics(tmp_path / str(batch))[0]["valid_loss"] for batch in (12, 6, 4))
    assert others == pytest.approx([one, one], abs=1e-6, rel=0)


def _poison(model: torch.nn.Module, at_forward: int) -> None:
    """Make the gradient, not the loss, of the n-th forward pass NaN."""
    count = itertools.count(1)

    def hook(_module, _inputs, output):
        if next(count) == at_forward:
            output.register_hook(lambda gradient: gradient * float("nan"))

    next(m for m in model.modules() if isinstance(m, Embedding)).register_forward_hook(hook)


def _bad_gradient(mesh, corpus: str, folder: Path, stages: list, dtype: str):
    told, publish = [], checkpointer.publish
    checkpointer.publish = lambda *args: (time.sleep(0.2), publish(*args))
    for stage in stages:
        sections = {"optim": {"zero_stage": stage}, "checkpoint": {"every": 1}}
        arguments = words(
            corpus, folder / f"{stage}", **sections, train={"dtype": dtype, "micro_batch": 6}
        )
        config = parse_config(arguments)
        engine = Engine(config, mesh)
        if mesh.rank == 0:
            _poison(engine.deepspeed.module, 3)
        with pytest.raises(FloatingPointError) as error:
            train(config, engine, open_corpora(config.data)[0], ())
        saved = folder / f"{stage}" / "checkpoints"
        whole = (saved / "not_finite_step_00000002" / "index.json").exists()
        told.append((str(error.value), whole, (saved / "latest").read_text()))
    return told


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(toy_corpus, tmp_path, dtype):
    for told in run(2, _bad_gradient, toy_corpus, tmp_path, [0, 1, 2, 3], dtype):
        for message, whole, latest in told:
            assert whole, "the save under way was waited for"
            assert latest == "step_00000001\n", "it leads to the fault each time"
            assert "at step 3: lower optim.lr" in message
            assert message.startswith("grad_norm is ")
    for stage in range(4):
        assert len(metrics(tmp_path / f"{stage}")) == 2


def _finished(mesh, corpus: str, folder: Path):
    arguments = words(corpus, folder, train={"steps": 3}, eval={"every": 1})
    train_on(mesh, arguments)
    before = (folder / "metrics.jsonl").read_bytes()
    train_on(mesh, arguments)
    return before, (folder / "metrics.jsonl").read_bytes()


def test_a_finished_run_started_again_does_nothing(toy_corpus, tmp_path):
    before, after = run(1, _finished, toy_corpus, tmp_path)[0]
    assert before == after
    assert before.count(b"\n") == 3
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000003"]


def _failing_last_save(mesh, corpus: str, folder: Path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    checkpointer.publish = fail
    with pytest.raises(SaveFailed, match=r"step 8 .*No space left"):
        train_on(mesh, words(corpus, folder))


def test_a_save_that_fails_at_the_end_is_not_silent(toy_corpus, tmp_path):
    run(2, _failing_last_save, toy_corpus, tmp_path)
