"""benchmarks.startup runs and tells of every phase."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.jobs import REPOSITORY


@pytest.mark.slow
def test_every_phase_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.startup", "--rounds", "1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    for name in ("pretrain --help", "import of torch", "first step", "launch to the first step"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
        assert float(line.split()[-2]) > 0
