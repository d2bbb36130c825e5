"""Where two runs, or two checkpoints of different topologies, differ."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from megatron_ngpt.engine.checkpoint.index import checksum, facts_of
from tests.distributed import run
from tests.jobs import train_on, words
from tests.tools.commands import tool

MATRIX = "blocks.0.mlp.up.weight"


def _trained(mesh, corpus: str, folder, stage: int, steps: int = 2) -> None:
    sections = {"train": {"steps": 4, "stop_at": steps}, "optim": {"zero_stage": stage}}
    train_on(mesh, words(corpus, folder, **sections, checkpoint={"every": 1, "keep": 0}))


@pytest.fixture(scope="module")
def runs(toy_corpus, tmp_path_factory):
    """The same two steps on two ranks and ZeRO, and on one; and the first once more."""
    folder = tmp_path_factory.mktemp("runs")
    run(2, _trained, toy_corpus, folder / "two", 1)
    run(1, _trained, toy_corpus, folder / "one", 0)
    shutil.copytree(folder / "two", folder / "changed")
    return folder


def _change(checkpoint, name: str, index: tuple[int, ...], to: float) -> str:
    """Set a value of a checkpoint as if it had been saved so; the file that holds it."""
    content = json.loads((checkpoint / "index.json").read_text())
    for box in content["tensors"][name]["boxes"]:
        edges = zip(index, box["offsets"], box["sizes"], strict=True)
        if all(first <= i < first + size for i, first, size in edges):
            path = checkpoint / box["file"]
            tensors = {key: np.array(values) for key, values in load_file(path).items()}
            tensors[box["key"]][tuple(np.subtract(index, box["offsets"]))] = to
            save_file(tensors, path)
            found = facts_of(path)
            content["files"][path.name] = {"size": found.size, "crc32": found.crc32}
            del content["crc32"]
            content["crc32"] = checksum(content)
            (checkpoint / "index.json").write_text(json.dumps(content))
            return path.name
    raise AssertionError(index)


def _told(capsys, *places) -> tuple[int, str]:
    code = tool("compare_runs").main([str(place) for place in places])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_equal(runs, capsys):
    code, said = _told(capsys, runs / "two", runs / "two")
    assert code == 0
    assert said.splitlines() == [
        "equal in metrics.jsonl: 2 steps, 1 to 2",
        "equal in checkpoints of steps 1, 2",
    ]


def test_one_value_of_one_rank(runs, capsys):
    changed = runs / "changed/checkpoints/step_00000002"
    file = _change(changed, f"master/{MATRIX}", (30, 7), 0.5)
    code, said = _told(capsys, runs / "two", runs / "changed")
    lines = said.splitlines()
    assert code == 1
    assert lines[0] == "equal in metrics.jsonl: 2 steps, 1 to 2"
    assert lines[1] == "checkpoints of step 2: 1 tensors differ"
    assert lines[2] == f"  master/{MATRIX}: 1 of 1,110 values"
    rank = int(file[5:10])
    assert f"    1 in box [30, 31) x [7, 8), of rank {rank} and rank {rank}: by up to " in lines[3]
    assert lines[3].endswith(" 0.5")
    assert lines[4] == "equal in checkpoints of steps 1"


def test_across_topologies(runs, capsys):
    """Two ranks sum in another order: the first step's loss is equal to its last bits."""
    code, said = _told(capsys, runs / "one", runs / "two")
    assert code == 1
    assert "is the first whose records differ: " in said
    found = [line for line in said.splitlines() if "in box" in line]
    assert found
    assert all("of rank 0 and rank " in line for line in found)
    assert any("of rank 0 and rank 1" in line for line in found)
    largest = [float(line.partition("by up to ")[2].partition(",")[0]) for line in found]
    assert 0 < max(largest) < 1e-2


def test_nothing_in_common(runs, capsys, tmp_path):
    code, said = _told(capsys, runs / "one", tmp_path)
    assert (code, "no checkpoint's step in common" in said) == (2, True)
