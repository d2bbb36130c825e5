"""What tools/show_batch.py prints of a step is what the ranks of the run fed to their models."""

import json

import numpy as np
import pytest
import torch

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from tests.distributed import run
from tests.jobs import VOCABULARY, words
from tests.tools.commands import tool

# ranks and settings of a start after another, over stages that change corpora and length
STARTS = [
    (2, {"train.stop_at": 5, "train.micro_batch": 1}),
    (2, {"train.stop_at": 8, "parallel.cp": 2, "parallel.ulysses": 1, "train.global_batch": 4}),
]
BOTH_AXES = [(4, {"train.stop_at": 2, "parallel.cp": 2}), *STARTS]


def _pair(prefix, seed: int) -> str:
    random = np.random.default_rng(seed)
    with IndexedWriter(prefix, "uint16") as writer:
        for _ in range(40):
            writer.add_document(random.integers(1, VOCABULARY, random.integers(0, 60)))
    return str(prefix)


def _train(mesh, argv: list[str], folder) -> list[dict]:
    """pretrain() on a rank, noting what reaches the model."""
    import pretrain_ngpt
    from megatron_ngpt.engine import engine as room
    from megatron_ngpt.mesh.launch import Launch
    from megatron_ngpt.parallel.context import Inputs
    from megatron_ngpt.run.attempts import AttemptRecord
    from megatron_ngpt.train.watch import Watch

    seen: list[dict] = []
    real = room.micro_batches

    def noting(inputs: Inputs):
        if torch.is_grad_enabled():
            both = (inputs.tokens, inputs.targets)
            seen.append(dict(zip(("tokens", "targets"), (x.tolist() for x in both), strict=True)))
        return real(inputs)

    room.micro_batches = noting
    pretrain_ngpt.start = lambda *_: None  # the ranks have met already
    with AttemptRecord(folder, mesh.rank) as attempt:
        launch = Launch(mesh.rank, mesh.degrees.dp)
        pretrain_ngpt.pretrain(pretrain_ngpt._parse(argv), launch, Watch(attempt=attempt))
    return seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return _trained(tmp_path_factory, STARTS)


def _trained(tmp_path_factory, starts):
    """A run; its folder, and by step what each rank fed to its model."""
    folder = tmp_path_factory.mktemp("run")
    one, two, three = (_pair(folder / name, n) for n, name in enumerate(["one", "two", "three"]))
    data = {
        "train": f"[{{prefix: {one}, weight: 2}}, {{prefix: {two}}}]",
        "stages": f"[{{tokens: 500, train: [{{prefix: {two}}}, {{prefix: {three}}}]}},"
        " {tokens: 704, seq_len: 32}]",
        **{"shuffle_unit": 64, "document_mask": True, "eod": 7, "valid_fraction": 0.1},
    }
    model = {"width": 28, "heads": 2, "kv_heads": 2, "ffn_width": 38}
    sections = {
        "data": data,
        "model": model,
        "train": {"steps": 9, "global_batch": 8, "micro_batch": 2},
    }
    (folder / "run/checkpoints").mkdir(parents=True)
    steps: list[list] = []
    for ranks, changed in starts:
        argv = words("", folder / "run", **sections)
        argv = [*argv, *(word for name, v in changed.items() for word in (f"--{name}", str(v)))]
        seen = run(ranks, _train, argv, folder / "run")
        steps += [list(of_ranks) for of_ranks in zip(*seen, strict=True)]
    assert len(steps) == 8
    return folder / "run", steps


def _told(capsys, *argv: str) -> list[dict]:
    assert tool("show_batch").main([*argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_rank_at_steps_of_every_start_and_stage(trained, capsys):
    _check_all(trained, (1, 5, 6, 8), capsys)


@pytest.mark.slow
def test_replicas_whose_ranks_share_sequences(tmp_path_factory, capsys):
    _check_all(_trained(tmp_path_factory, BOTH_AXES), range(1, 9), capsys)


def _check_all(trained, numbers, capsys) -> None:
    folder, steps = trained
    for step in numbers:
        for rank, seen in enumerate(steps[step - 1]):
            found = _told(capsys, str(folder), "--step", str(step), "--rank", str(rank))
            assert len(found) == sum(map(len, seen["tokens"]))
            for given in found:
                at = given["micro_batch"], given["row"]
                for kind in ("tokens", "targets"):
                    assert given[kind] == seen[kind][at[0]][at[1]], (step, rank, at, kind)
                for document, offset, first, count in map(dict.values, given["pieces"]):
                    whole = IndexedDataset(given["prefix"]).document(document)
                    here = given["tokens"][first : first + count]
                    assert here == whole[offset : offset + count].tolist()


def test_for_people(trained, capsys):
    folder, steps = trained
    show = tool("show_batch").main
    assert show([str(folder), "--step", "6"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("step 6: tokens 640 to 703 of the run, 4 sequences of 16")
    assert told[1] == "as attempt 2 did it, which began after step 5: pp 1 x dp 1 x cp 2 x tp 1"
    # of the first row, the ranks of a ring hold quarters 0 and 3, and 1 and 2
    (zero, three), (one, two) = (
        [of["tokens"][0][0][:4], of["tokens"][0][0][4:]] for of in steps[5]
    )
    shown = [line for line in told[4:] if line[:1].isdigit()]
    row = [int(word) for line in shown for word in line.split()][:16]
    assert row == [*zero, *one, *two, *three]
    assert show([str(folder), "--step", "9"]) == 0
    assert "NOT DONE YET" in capsys.readouterr().out


def test_what_is_not_there(trained, capsys, tmp_path):
    folder, _ = trained
    show = tool("show_batch").main
    assert show([str(folder), "--step", "3", "--rank", "2"]) == 2
    assert "--rank 2: step 3 was done by ranks 0 to 1" in capsys.readouterr().err
    assert show([str(folder), "--step", "10"]) == 2
    assert "the run has steps 1 to 9" in capsys.readouterr().err
    assert show([str(tmp_path), "--step", "1"]) == 2
    assert "has no line of a start that could do it" in capsys.readouterr().err
    prefix = folder.parent / "two"
    _pair(prefix, 77)
    try:
        assert show([str(folder), "--step", "3"]) == 2
        assert "two is not what it was when step 3 was done" in capsys.readouterr().err
    finally:
        _pair(prefix, 1)
