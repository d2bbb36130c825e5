"""A real study of two runs, killed on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from megatron_ngpt.study.results import add_row, read_rows
from tests.jobs import REPOSITORY

TOY = REPOSITORY / "examples/experiments/toy.yaml"


@pytest.fixture
def command(tmp_path):
    content = yaml.safe_load(TOY.read_text(encoding="utf-8"))
    content |= {"limit": 1, "neighbours": 0, "seeds": [1]}
    content["base"]["train"]["steps"] = 60
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--format", "text", "--train", str(REPOSITORY / "docs/training.md")]
    words += ["--valid", str(REPOSITORY / "docs/data.md"), "--output", str(tmp_path / "out")]
    program = [sys.executable, str(REPOSITORY / "tools/study.py"), str(tmp_path / "study.yaml")]
    return [*program, *words, "--jobs", "2"]


def test_a_killed_study_goes_on_and_runs_nothing_twice(command, tmp_path):
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    out = tmp_path / "out"
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(out.glob("runs/*/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
        if (out / "results.jsonl").exists():
            break
    os.killpg(first.pid, signal.SIGKILL)  # the study and its runs
    first.wait()
    before = read_rows([out / "results.jsonl"])
    subprocess.run(command, env=environment, check=True, timeout=400)
    rows = read_rows([out / "results.jsonl"])
    assert sorted(row["contestant"] for row in rows.values()) == ["gpt", "ngpt"]
    assert before.items() <= rows.items()
    for row in rows.values():
        assert [tokens for tokens, _ in row["curve"]] == [128 * n for n in range(5, 65, 5)]
        assert row["cpu_seconds"] > 0
        assert row["loss"] == row["curve"][-1][1] < 6
    assert not list(out.glob("runs/*"))  # what became a row is not kept twice
    page = (out / "README.md").read_text(encoding="utf-8")
    assert "| ngpt |" in page
    assert (out / "factor.png").stat().st_size > 1000

    # drawn again from the rows alone, which are then all that is needed
    committed = tmp_path / "committed.jsonl"
    shutil.move(out / "results.jsonl", committed)
    words = ["--results", str(committed), "--draw", str(tmp_path / "drawn")]
    done = subprocess.run(
        [*command[:3], *words], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[0] == page.split("\n\n")[2].splitlines()[0]
    again = subprocess.run(
        [*command, "--results", str(committed)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "start" not in again.stdout


def test_rows_survive_a_writer_that_was_killed(tmp_path):
    path = tmp_path / "rows.jsonl"
    add_row(path, {"id": "a", "loss": 1.0})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": "b", "lo')
    add_row(path, {"id": "c", "loss": None})
    assert list(read_rows([path])) == ["a", "c"]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["id"] == "c"
