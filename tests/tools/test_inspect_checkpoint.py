"""tools/inspect_checkpoint.py on checkpoints that two ranks wrote."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ngpt.engine.checkpoint.index import checksum
from megatron_ngpt.run.checkpoints import find_checkpoint
from tests.distributed import run
from tests.engine.checkpoint.saving import build, save_steps
from tests.jobs import REPOSITORY
from tests.tools.commands import tool

NEWEST = "checkpoints/step_00000002"


def _save(mesh, folder: Path) -> None:
    save_steps(*build(mesh, folder), [1, 2])


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """The folder of a run on two ranks with ZeRO-1."""
    folder = tmp_path_factory.mktemp("job")
    run(2, _save, folder)
    return folder


@pytest.fixture
def copy(job, tmp_path) -> Path:
    """Its newest checkpoint, to be damaged."""
    return Path(shutil.copytree(job / NEWEST, tmp_path / "step_00000002"))


@pytest.fixture
def inspect(capsys):
    """Exit code, output and messages."""
    command = tool("inspect_checkpoint")

    def call(*arguments):
        code = command.main(list(map(str, arguments)))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_as_a_user_runs_it(job):
    argv = [sys.executable, "tools/inspect_checkpoint.py", job, "--verify"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"checkpoint  {job / NEWEST}"
    assert lines[1].startswith("step        2, 384 tokens, saved 20")
    assert lines[2] == "topology    pp 1, dp 2, cp 1, tp 1, zero_stage 1, world_size 2"
    assert lines[-1] == "whole       by sizes and checksums"


def test_what_is_in_it(job, inspect):
    code, out, err = inspect(job)
    assert (code, err) == (0, "")
    files = list((job / NEWEST).iterdir())
    size = sum(path.stat().st_size for path in files if path.name != "index.json")
    assert f"files       {len(files) - 1}, {size / 1e3:.2f} kB" in out
    index = json.loads((job / NEWEST / "index.json").read_text())["tensors"]
    masters = {name: t for name, t in index.items() if name.startswith("master/")}
    assert f"master      {len(masters)} tensors" in out
    assert "rng         2 tensors" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line[:2] == "  "}
    for name, tensor in masters.items():
        row = rows[name.removeprefix("master/")]
        shape = [str(size) for size in tensor["shape"]]
        assert row[: 2 * len(shape) - 1] == " x ".join(shape).split()
        assert row[2 * len(shape) - 1 : -2] == ["float32", str(len(tensor["boxes"]))]
    assert out.splitlines()[-1] == "whole       by sizes (--verify reads checksums)"


def test_a_run_its_checkpoints_and_one_of_them(job, inspect):
    places = [job, job / "checkpoints", job / NEWEST]
    said = [inspect(place) for place in places]
    assert said[0] == said[1] == said[2]
    assert "step        1," in inspect(job / "checkpoints/step_00000001")[1]
    assert find_checkpoint(job) == find_checkpoint(job / NEWEST) == job / NEWEST


def test_none(tmp_path, inspect):
    for place in (tmp_path, tmp_path / "nowhere"):
        code, out, err = inspect(place)
        assert (code, out) == (2, "")
        assert err == f"inspect_checkpoint.py: {place}: there is no complete checkpoint in it\n"


def _shorten(checkpoint: Path) -> str:
    path = next(checkpoint.glob("rank_00001*"))
    path.write_bytes(path.read_bytes()[:-4])
    return f"{path} has "


def _remove(checkpoint: Path) -> str:
    path = next(checkpoint.glob("rank_00000*"))
    path.unlink()
    return f"{path} is missing"


def _empty_state(checkpoint: Path) -> str:
    (checkpoint / "state.json").write_text("{}")
    return f"{checkpoint / 'state.json'} has 2 bytes"


def _remove_index(checkpoint: Path) -> str:
    (checkpoint / "index.json").unlink()
    return f"{checkpoint / 'index.json'}: FileNotFoundError"


def _change_index(checkpoint: Path) -> str:
    path = checkpoint / "index.json"
    path.write_text(path.read_text().replace('"float32"', '"uint8"', 1))
    return f"{path}: its content is not what was written"


@pytest.mark.parametrize("spoil", [_shorten, _remove, _empty_state, _remove_index, _change_index])
def test_damage_that_sizes_show(copy, inspect, spoil):
    expected = spoil(copy)
    for arguments in ([copy], [copy, "--verify"]):
        code, out, err = inspect(*arguments)
        assert (code, err) == (1, "")
        assert f"DAMAGED     {expected}" in out
        assert "whole" not in out


def test_damage_that_only_checksums_show(copy, inspect):
    path = next(copy.glob("rank_00001*"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert inspect(copy)[0] == 0
    code, out, _ = inspect(copy, "--verify")
    assert code == 1
    assert f"DAMAGED     {path}: its content is not what was written (checksum)" in out


def test_all_damage_is_told(copy, inspect):
    said = [_shorten(copy), _remove(copy), _empty_state(copy)]
    out = inspect(copy)[1]
    assert all(f"DAMAGED     {text}" in out for text in said)


def test_another_format_is_not_damage(copy, inspect):
    path = copy / "index.json"
    content = json.loads(path.read_text())
    content.pop("crc32")
    content["format"] = 99
    path.write_text(json.dumps(content | {"crc32": checksum(content)}))
    code, out, err = inspect(copy)
    assert (code, out) == (2, "")
    assert "is of format 99" in err
