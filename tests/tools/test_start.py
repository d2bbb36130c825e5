"""Help, printed settings and refusals do not wait until torch or DeepSpeed is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = sorted(f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py"))

# each line of the input is a command; told are its exit code and what heavy it has imported
WATCH = """
import contextlib, io, os, runpy, sys

def ended(code):
    raise SystemExit(code)

os._exit, seen = ended, set()
for line in sys.stdin.read().splitlines():
    sys.argv = line.split()
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
    heavy = {"torch", "deepspeed", "transformers"} & set(sys.modules) - seen
    seen |= heavy
    print(line, code, *sorted(heavy) or ["light"], sep="|")
"""


def watched(*commands: str, folder: Path) -> list[list[str]]:
    """[command, exit code, heavy packages or "light"] of each, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        input="\n".join(str(ROOT / command) for command in commands),
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


def test_help_imports_neither_torch_nor_deepspeed(tmp_path):
    found = watched(*(f"{tool} --help" for tool in ("pretrain_ngpt.py", *TOOLS)), folder=tmp_path)
    assert len(found) > 15
    assert [line for line in found if line[1:] != ["0", "light"]] == []


@pytest.mark.parametrize("program", ["pretrain_ngpt.py", "tools/estimate.py --gpus 8"])
def test_printed_and_refused_settings_import_neither(tmp_path, program):
    shown = f"{program} --print_config"
    refused = [
        f"{program} --optim.learning_rate 1e-3",
        f"{program} --train.steps many",
        f"{program} --model.heads 7",
        f"{program} --config nowhere.yaml",
    ]
    if program == "pretrain_ngpt.py":
        refused += [
            f"{program} --parallel.tp 2",
            f"{program} --data.train nowhere",
            f"{program} --dry_run --world_size none",
        ]
    found = watched(shown, *refused, folder=tmp_path)
    assert [line[1:] for line in found] == [["0", "light"], *[["2", "light"] for _ in refused]]
