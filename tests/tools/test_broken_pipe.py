"""``python tools/X.py ... | head``: every tool ends quietly."""

import subprocess
import sys

import pytest

from megatron_ngpt.run.attempts import add, begin
from tests.jobs import REPOSITORY

TOOLS = sorted(path.name for path in (REPOSITORY / "tools").glob("*.py"))


RUN_TOOL = """
import runpy
runpy.run_path(sys.argv[0], None, "__main__")
"""
TELLS = """
from megatron_ngpt.console import tool
def main():
    try:
        print("x" * 100_000)
    except OSError as err:  # as tools for pairs do
        print(f"error: {err}", file=sys.stderr)
    return 0
raise SystemExit(tool(main))
"""


def unread(code: str, *words: str) -> tuple[int, str]:
    """Exit code and stderr of a program whose reader is gone before it prints."""
    start = f"import sys; sys.stdin.readline(); sys.argv = sys.argv[1:]\n{code}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", start, *words]
    process = subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    said = process.stderr.read()
    return process.wait(60), said


def test_job_status_ends_as_other_programs_do(tmp_path):
    add(tmp_path, begin(tmp_path, job="17"), reason="done", step=9)
    assert unread(RUN_TOOL, "tools/job_status.py", str(tmp_path)) == (141, "")


def test_an_oserror_that_a_tool_tells_of_is_not_this_one():
    assert unread(TELLS) == (141, "")


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_goes_through_the_same_door(name):
    """So that the test above is one of all; a new tool without it fails here."""
    last = (REPOSITORY / "tools" / name).read_text().splitlines()[-1]
    assert last in (
        "    raise SystemExit(tool(main))",
        "    finish(tool(main))",
        "    finish(tool(run))",
    )
