"""Ranks that stand still: each case is a process of its own, since the watchdog ends it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import REPOSITORY

BEGIN = """
import ctypes, sys, time
from pathlib import Path
from megatron_ngpt.train.watchdog import Watchdog
with Watchdog({limit}, Path(sys.argv[1]), rank=2) as dog:
    {body}
"""


def watched(folder: Path, limit: float, body: str) -> subprocess.CompletedProcess:
    code = BEGIN.format(limit=limit, body=body)
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_rank_that_stands_still_tells_where_and_ends(tmp_path):
    done = watched(tmp_path, 0.4, "dog.beat(7, 'evaluation on x'); time.sleep(50)")
    assert done.returncode == 3, done
    text = (tmp_path / "rank_00002.stack").read_text()
    first = text.splitlines()[0]
    assert first.startswith("rank 2 on ")
    assert first.endswith("after step 7, evaluation on x")
    assert 'File "<string>", line 6 in <module>' in text
    assert first in done.stderr


def test_start_up_has_more_time_and_beats_are_enough(tmp_path):
    wait = "time.sleep(0.5); dog.beat(-1, 'compiling', slow=True); time.sleep(0.9)"
    steady = "[(time.sleep(0.1), dog.beat(n, 'step')) for n in range(9)]"
    assert watched(tmp_path, 0.5, f"{wait}; {steady}").returncode == 0
    assert not list(tmp_path.iterdir())


def test_no_limit(tmp_path):
    assert watched(tmp_path, 0, "dog.beat(1, 'step'); time.sleep(0.3)").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="calls sleep of the C library")
def test_code_that_keeps_the_interpreters_lock_is_ended_too(tmp_path):
    """The watchdog's own thread cannot run then."""
    done = watched(tmp_path, 0.3, "time.sleep(0.1); ctypes.PyDLL(None).sleep(50)")
    assert done.returncode == 1, done
    assert "most recent call first" in done.stderr, done
