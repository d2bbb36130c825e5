"""pretrain_ngpt.py as a user runs it."""

import json
import math
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.config import IGNORED, load_config, parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.largest import largest_id
from megatron_ngpt.data.loader import train_loader
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.run.checkpoints import checkpoints
from megatron_ngpt.run.ledger import read_ledger
from tests.distributed import run
from tests.jobs import Finished, forked, metrics, pretrain, train_on, words

FIELDS = {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_second", "step_seconds"}
SECTIONS = {"checkpoint": {"every": 3}, "eval": {"every": 3}, "logging": {"every": 2}}


def test_the_main_job_with_a_stop_and_a_resume(toy_corpus, tmp_path):
    folder = tmp_path / "stopped"
    arguments = words(toy_corpus, folder, **SECTIONS)
    first = pretrain([*arguments, "--train.stop_at", "4"], processes=2)
    assert first.code == 0, first
    assert [path.name for path in checkpoints(folder / "checkpoints")] == [
        "step_00000004",
        "step_00000003",
    ]
    second = pretrain(arguments, processes=2)
    assert second.code == 0, second
    assert second.err == "", second
    lines = second.out.splitlines()
    tables = [line for line in lines if line.endswith("2 ranks = pp 1 x dp 2 x cp 1 x tp 1")]
    assert len(tables) == 1, second
    assert "changed at step" not in second.out, "to stop says nothing of the run"
    after = lines[lines.index("resumed at step 4 of 8") + 1 :]
    assert [line[21:].split(",")[0] for line in after] == ["step 6/8", "step 8/8"]

    records = metrics(folder)
    assert [record["step"] for record in records] == list(range(1, 9))
    for record in records:
        evaluated = record["step"] in (3, 4, 6, 8)
        assert record.keys() == FIELDS | ({"valid_loss"} if evaluated else set())
        assert record["tokens"] == record["step"] * 12 * 16
        assert record["tokens_per_second"] == pytest.approx(192 / record["step_seconds"])
    assert records[-1]["loss"] < records[0]["loss"] - 0.5
    assert records[-1]["valid_loss"] < records[2]["valid_loss"] - 0.2
    assert load_config(folder / "config.yaml").model.ffn_width == 37

    run(2, train_on_quietly, words(toy_corpus, tmp_path / "whole", **SECTIONS))
    varying = ("tokens_per_second", "step_seconds")
    for ours, theirs in zip(records, metrics(tmp_path / "whole"), strict=True):
        if ours["step"] == 4:
            ours.pop("valid_loss")  # a run also evaluates where it stops
        assert all(ours[k] == theirs[k] for k in ours if k not in varying), (ours, theirs)
        assert ours.keys() == theirs.keys()


def train_on_quietly(mesh, arguments) -> None:
    train_on(mesh, arguments)  # an engine cannot be sent back


def train_as_asked(mesh, arguments) -> None:
    degrees = Degrees.of(parse_config(arguments).parallel, dist.get_world_size())
    train_on(Mesh.build(degrees, mesh.device), arguments)


def test_plain_python(toy_corpus, tmp_path):
    done = pretrain(words(toy_corpus, tmp_path))
    assert done.code == 0, done
    assert done.err == "", done
    assert len(metrics(tmp_path)) == 8


def reason(done: Finished, code: int) -> str:
    """The one message of a run that ended with this exit code, and no traceback."""
    assert done.code == code, done
    assert "Traceback" not in done.err, done
    assert done.err.startswith("pretrain_ngpt.py: "), done
    assert done.err.count("pretrain_ngpt.py: ") == 1, done
    return done.err


REFUSED = {
    "no corpus": ({"data": {"train": "/nowhere/x"}}, "data.train = /nowhere/x: "),
    "batch": ({"train": {"global_batch": 13}}, "train.global_batch = 13 is not a multiple"),
    "no overrides": (
        {"engine": {"deepspeed_overrides": "/nowhere/x.json"}},
        "engine.deepspeed_overrides = /nowhere/x.json: ",
    ),
    "vocabulary": ({"model": {"vocab_size": 60}}, "holds token id 60, but model.vocab_size = 60"),
    "no folder": ({"checkpoint": {"dir": "/dev/null/x"}}, "checkpoint.dir = /dev/null/x: no files"),
}
if not torch.cuda.is_available():
    REFUSED["no GPU"] = ({"engine": {"device": "cuda"}}, "local rank 0 has no GPU")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(toy_corpus, tmp_path, case):
    sections, message = REFUSED[case]
    assert message in reason(forked(words(toy_corpus, tmp_path, **sections)), code=2)
    assert not (tmp_path / "metrics.jsonl").exists() or not metrics(tmp_path)


def test_a_command_line_that_cannot_be_parsed(tmp_path):
    done = forked(["--train.globalbatch", "13"])
    assert done.code == 2, done
    assert "did you mean --train.global_batch?" in done.err, done
    assert done.err.count("usage: ") == 1, done
    help_wanted = forked(["--help"])
    assert (help_wanted.code, help_wanted.err) == (0, "")
    assert "--train.global_batch" in help_wanted.out


def test_another_model_in_the_folder_is_refused(toy_corpus, tmp_path):
    assert forked(words(toy_corpus, tmp_path, train={"steps": 2})).code == 0
    done = forked(words(toy_corpus, tmp_path, model={"heads": 5}))
    assert "model.heads = 5, but " in reason(done, code=2)


def test_a_loss_that_is_no_number_ends_the_run(toy_corpus, tmp_path):
    sections = {"model": {"architecture": "gpt"}, "optim": {"lr": 1e30, "grad_clip": 0}}
    done = forked(words(toy_corpus, tmp_path, **sections, checkpoint={"every": 1}))
    told = reason(done, code=1)
    assert "loss is nan at step 2: lower optim.lr" in told
    assert "was moved to " in told
    assert "not_finite_step_00000001, there is none before" in told
    assert not checkpoints(tmp_path / "checkpoints")
    assert [record["step"] for record in metrics(tmp_path)] == [1]


def test_a_save_that_fails_ends_the_run(toy_corpus, tmp_path):
    """On a disk that takes no large files."""
    done = forked(words(toy_corpus, tmp_path, checkpoint={"every": 3}), largest_file=20_000)
    assert "the checkpoint of step 3 could not be written" in reason(done, code=1)
    assert "File too large" in done.err, done
    assert len(metrics(tmp_path)) == 6, "it is noticed at the next save"
    assert not checkpoints(tmp_path / "checkpoints")


def test_when_the_checkpoints_are_gone_only_start_over_begins_anew(toy_corpus, tmp_path):
    arguments = words(toy_corpus, tmp_path, train={"steps": 2})
    assert forked(arguments).code == 0
    before = metrics(tmp_path)
    (tmp_path / "checkpoints" / "step_00000002" / "index.json").write_text("{}")
    damaged = forked(arguments)
    assert damaged.code == 2, damaged
    assert "damaged checkpoint, moved to " in damaged.err
    assert "no whole checkpoint is left there" in damaged.err
    gone = reason(forked(arguments), code=2)
    assert "attempts.jsonl says that this run saved step 2 in " in gone
    assert metrics(tmp_path) == before, "nothing was lost"
    done = forked([*arguments, "--checkpoint.start_over", "true"])
    assert done.code == 0, done
    assert [r["loss"] for r in metrics(tmp_path)] == [r["loss"] for r in before]
    undone = (tmp_path / "metrics_undone.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in undone] == before


def test_another_seed_is_refused_and_another_rate_is_told(toy_corpus, tmp_path):
    arguments = words(toy_corpus, tmp_path)
    assert forked([*arguments, "--train.stop_at", "2"]).code == 0
    refused = reason(forked([*arguments, "--train.seed", "7"]), code=2)
    assert "train.seed: 1234 -> 7: the data are permuted anew" in refused
    options = ["--train.seed", "7", "--train.accept_changes", "[train.seed]", "--optim.lr", "0.01"]
    done = forked([*arguments, *options, "--train.stop_at", "4"])
    assert done.code == 0, done
    assert "changed at step 2, accepted: train.seed: 1234 -> 7: " in done.out
    assert "changed at step 2: optim.lr: 0.02 -> 0.01: " in done.out
    first, second = read_ledger(tmp_path)
    assert (first.step, second.step, second.attempt, second.accepted) == (0, 2, 3, ["train.seed"])
    assert second.corpora[0]["corpora"][0]["identity"]["documents"] == 60
    over = forked([*arguments, *options, "--train.steps", "3"])
    assert over.code == 0, over
    assert (
        "nothing to do: the run stands at step 4, beyond train.steps (or stop_at) = 3" in over.out
    )


def test_rank_0_alone_speaks_and_torchrun_does_not_silence_it(toy_corpus, tmp_path):
    done = pretrain(words(toy_corpus, tmp_path, train={"global_batch": 13}), processes=2)
    assert done.code == 1, done  # torchrun's own
    assert done.err.count("train.global_batch = 13 is not a multiple") == 1, done
    assert "exitcode  : 2" in done.err, done


@pytest.mark.slow
def test_a_rank_that_fails_alone_is_heard_and_the_others_do_not_wait(tmp_path):
    """A token id above the vocabulary that only rank 1 reads, in the third step."""
    prefix = tmp_path / "numbers"
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add_document(np.arange(2000))
    sections = {"model": {"vocab_size": 2000}, "data": {"valid_fraction": 0}}
    arguments = words(str(prefix), tmp_path / "run", **sections)
    config = parse_config(arguments)
    stages, _ = open_corpora(config.data)
    with train_loader(config, stages, dp=2, dp_rank=1, consumed=2 * 12) as batches:
        place = int(next(batches)[0].tokens[0, 0, 3])  # as token i is i
    # damage that the start does not see: what it knows of the corpus goes by size and time
    bin_file, before = f"{prefix}.bin", os.stat(f"{prefix}.bin")
    assert largest_id(IndexedDataset(prefix)) == 1999
    np.memmap(bin_file, "<u2", "r+")[place] = 2000
    os.utime(bin_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = pretrain(arguments, processes=2, timeout=90)
    assert done.code == 1, done
    assert done.err.count("holds token id 2000, but model.vocab_size = 2000") == 1, done
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_from_a_gpu_to_a_cpu_and_back(toy_corpus, tmp_path, stage):
    """Resumed on the other device after every third step; like one device up to rounding."""
    sections = {"optim": {"zero_stage": stage}, "train": {"steps": 9}}
    for stop_at, device in ((3, "cuda"), (6, "cpu"), (9, "cuda")):
        arguments = words(toy_corpus, tmp_path / "both", **sections, engine={"device": device})
        done = pretrain([*arguments, "--train.stop_at", str(stop_at)])
        assert done.code == 0, done
    done = forked(words(toy_corpus, tmp_path / "cpu", **sections))
    assert done.code == 0, done
    ours, theirs = ([r["loss"] for r in metrics(tmp_path / name)] for name in ("both", "cpu"))
    assert ours == pytest.approx(theirs, abs=1e-4, rel=0)


def test_with_documents_apart_the_targets_that_count_are_told(toy_corpus, tmp_path):
    """All tokens but those that end a document, by the .idx or by data.eod."""
    sections = {"data": {"document_mask": True, "eod": 3}, "train": {"steps": 2}}
    arguments = words(toy_corpus, tmp_path, **sections)
    run(2, train_on_quietly, arguments)
    config, counted = parse_config(arguments), []
    stages, _ = open_corpora(config.data)
    with train_loader(config, stages, dp=1, dp_rank=0, consumed=0) as batches:
        for _ in range(2):
            batch, _ = next(batches)
            counted.append(int(((batch.tokens != 3) & (batch.targets != IGNORED)).sum()))
    assert [record["targets"] for record in metrics(tmp_path)] == counted
    assert all(0 < count < 12 * 16 for count in counted)


@pytest.mark.parametrize(
    "degrees",
    [{"pp": 2}, pytest.param({"pp": 2, "cp": 2, "ulysses": 1}, marks=pytest.mark.slow)],
    ids=str,
)
def test_documents_of_the_index_train_as_documents_of_marks(tmp_path, degrees):
    """The same tokens: 60 documents without a known mark, and one document that holds the marks."""
    random, told = np.random.default_rng(0), {}
    documents = [[*random.integers(1, 61, random.integers(1, 25)), 0] for _ in range(60)]
    for name, parts in {"index": documents, "marks": [np.concatenate(documents)]}.items():
        with IndexedWriter(tmp_path / name, "uint16") as writer:
            for part in parts:
                writer.add_document(part)
        data = {"document_mask": True, "valid_fraction": 0} | (
            {"eod": 0} if name == "marks" else {}
        )
        sections = {"data": data, "train": {"steps": 3}, "parallel": degrees}
        arguments = words(str(tmp_path / name), tmp_path / f"{name}_run", **sections)
        run(math.prod(degrees.values()), train_as_asked, arguments)
        records = metrics(tmp_path / f"{name}_run")
        told[name] = [
            [record[key] for key in ("loss", "grad_norm", "targets")] for record in records
        ]
    assert told["index"] == told["marks"]
    assert told["index"][0][2] < 12 * 16
