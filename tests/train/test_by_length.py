"""Losses by position and passkeys on any topology; longer sequences than a checkpoint's own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from megatron_ngpt.config import IGNORED
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.engine.token_losses import token_losses
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.train.by_length import (
    Passkey,
    long_documents,
    loss_by_position,
    passkey_accuracy,
)
from tests.distributed import CPU, run
from tests.jobs import VOCABULARY, finish, metrics, train_on, words, write_corpus
from tests.parallel.training import Case, build, config_of

T = 16
LAYOUTS = {
    1: [Case()],
    2: [Case(tp=2), Case(cp=2), Case(cp=2, ulysses=1), Case(pp=2, layers=(1, 4)), Case(dp=2)],
    4: [Case(tp=2, cp=2, ulysses=1), Case(pp=2, cp=2)],
}


def some_ids(rows: int) -> torch.Tensor:
    return torch.randint(301, (rows, T + 1), generator=torch.Generator().manual_seed(8))


def some_targets() -> torch.Tensor:
    targets = some_ids(2)[:, 1:].clone()
    targets[1, 3:7] = IGNORED
    return targets


def evaluation_config(case: Case):
    config = config_of(case)
    train = replace(config.train, global_batch=8, micro_batch=1, loss_chunk=6)
    return replace(config, train=train, optim=replace(config.optim, zero_stage=0))


PROMPTS = [Passkey(tuple(range(n, n + 12)), 3) for n in range(0, 40, 10)]


def _evaluated(mesh, cases):
    found = {}
    for case in cases:
        engine = build(mesh, evaluation_config(case))
        each = token_losses(engine, some_ids(2)[:, :-1], some_targets())
        parts = loss_by_position(engine, some_ids(3).numpy(), 4)
        found[case] = each, parts, passkey_accuracy(engine, PROMPTS)
        engine.deepspeed.destroy()
    return found


@pytest.fixture(scope="module")
def plain() -> NGPT:
    config = config_of(Case())
    model = NGPT(config.model)
    initialise(model, parameter_table(config.model), config.train.seed)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_topology_tells_what_one_process_tells(plain, ranks):
    logits, targets = plain(some_ids(2)[:, :-1]), some_targets()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    firsts = logits.argmax(-1) == targets
    rows = some_ids(3)
    whole = F.cross_entropy(
        plain(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    parts = whole.view(3, 4, T // 4).mean((0, 2))
    for answers in run(ranks, _evaluated, LAYOUTS[ranks]):
        for case, (each, by_position, share) in answers.items():
            assert case.pp > 1 or each is not None
            if each is not None:
                torch.testing.assert_close(each[0].flatten(), losses, rtol=0, atol=1e-5)
                assert torch.equal(each[1][targets != IGNORED] > 0, firsts[targets != IGNORED])
            assert by_position == pytest.approx(parts.tolist(), abs=1e-5)
            assert share == 0  # of a model that knows nothing


def test_a_model_that_counts_finds_what_counts_on(toy_corpus, tmp_path):
    """The answer of a prompt that counts upwards follows from what comes before it."""
    assert run(1, _taught, toy_corpus, tmp_path) == [(1.0, 0.0)]


def _taught(mesh, corpus, folder):
    engine = train_on(mesh, words(corpus, folder, train={"steps": 60}, data={"seq_len": 32}))
    counting = [Passkey(tuple((n + np.arange(30)) % VOCABULARY), 4) for n in (3, 20)]
    broken = [Passkey((*prompt.ids[:-2], 0, prompt.ids[-1]), 4) for prompt in counting]
    return passkey_accuracy(engine, counting), passkey_accuracy(engine, broken)


def test_a_passkey_lies_where_it_was_hidden_and_is_asked_for_at_the_end():
    def encode(text):
        return list(text.encode())

    for depth in (0.0, 0.5, 1.0):
        prompt = Passkey.make(encode, 1000, depth, 12345)
        text = bytes(prompt.ids).decode()
        assert 1000 - 70 < len(prompt.ids) <= 1000
        assert text.endswith("What is the pass key? The pass key is 12345")
        assert bytes(prompt.ids[-prompt.answer :]) == b" 12345"
        assert text.index("12345") / len(text) == pytest.approx(depth, abs=0.17)
    with pytest.raises(ValueError, match="--lengths 100 is too short"):
        Passkey.make(encode, 100, 0.5, 12345)


def test_only_documents_that_are_long_enough_are_read(tmp_path):
    dataset = IndexedDataset(write_corpus(tmp_path))
    found = long_documents(dataset, 50, 4)
    assert [len(document) for document in found] == [51] * 4
    with pytest.raises(ValueError, match="no document has 60"):
        long_documents(dataset, 60, 4)


def _extended(mesh, corpus, folder):
    """Trained at 16 tokens with dp, continued at 32 with other sharing and YaRN."""
    sections = {"checkpoint": {"every": 4}}
    train_on(mesh, words(corpus, folder, train={"steps": 12, "stop_at": 4}, **sections))
    longer = words(
        corpus,
        folder,
        train={"steps": 12, "global_batch": 6},
        data={"seq_len": 32},
        parallel={"cp": 2, "ulysses": 1},
        model={"rope_scaling": "yarn", "rope_factor": 2, "rope_original": 16},
        **sections,
    )
    train_on(Mesh.build(Degrees(pp=1, dp=1, cp=2, tp=1), CPU), longer)


def test_a_run_goes_on_with_longer_sequences_and_other_cp(toy_corpus, tmp_path):
    run(2, _extended, toy_corpus, tmp_path)
    records = metrics(tmp_path)
    assert [r["step"] for r in records] == list(range(1, 13))
    assert [r["tokens"] for r in records] == [192 * n for n in range(1, 13)]
    losses = [r["loss"] for r in records]
    assert losses[4] < losses[0] - 0.1
    assert losses[-1] < losses[4] - 0.1


@pytest.mark.slow
def test_the_command(toy_corpus, tmp_path):
    run(1, _short, toy_corpus, tmp_path / "run")
    output, plot = tmp_path / "found.json", tmp_path / "plot.png"
    argv = ["torchrun", "--standalone", "--nproc-per-node", "2", "tools/evaluate.py"]
    argv += ["--checkpoint", str(tmp_path / "run"), "--data", toy_corpus, "--lengths", "8,32"]
    argv += ["--buckets", "4", "--output", str(output), "--plot", str(plot), "--parallel.cp", "2"]
    done = finish(argv)
    assert done.code == 0, done.err
    found = json.loads(output.read_text())["loss"]
    assert {length: len(parts) for length, parts in found.items()} == {"8": 4, "32": 4}
    assert found["32"][3] < found["32"][0]
    assert plot.stat().st_size > 1000
    refused = finish([*argv, "--lengths", "9"])
    assert refused.code != 0
    assert "--lengths 9 is not a multiple of 2" in refused.err


def _short(mesh, corpus, folder):
    train_on(mesh, words(corpus, folder, train={"steps": 30}, data={"seq_len": 32}))
