"""Triton kernels without a GPU: their results in the interpreter, their code for three chips."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_ngpt.ops.fused import pick_operations
from tests.jobs import REPOSITORY

pytest.importorskip("triton")


def run(*words: str, **environment: str) -> str:
    """Output of a Python process in the repository."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_refused_off_a_gpu():
    with pytest.raises(ValueError, match=r"engine\.ops = triton runs on CUDA devices, not on cpu"):
        pick_operations("triton", torch.device("cpu"))


CASES = [
    *("-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"),
    str(Path(__file__).with_name("in_interpreter.py")),
]


def test_results_in_the_interpreter():
    assert " passed" in run(*CASES, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_results_on_a_gpu():
    assert " passed" in run(*CASES, KERNELS_DEVICE="cuda", TRITON_INTERPRET="0")


def test_compiled_for_three_chips(tmp_path):
    """At the presets' smallest and largest width: next to no spills, whole 16-byte accesses."""
    path = tmp_path / "kernels.json"
    words = ["--offline", "--widths", "1024", "4096", "--json", str(path)]
    told = run("-m", "benchmarks.kernels", *words, TRITON_INTERPRET="0")
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert {row["sm"] for row in rows} == {80, 90, 100}
    assert len({row["kernel"] for row in rows}) == 16
    for row in rows:
        assert f"| {row['kernel']} |" in told
        assert row["spilled"] <= 8, row
        assert row["registers"] <= 168, row  # 3 programs of 4 warps on a multiprocessor
        assert row["shared"] <= 16 * 1024, row
        assert row["widest_load"] == 16, row
        # the sums of a softmax are two numbers a row
        assert row["widest_store"] == (4 if row["kernel"] == "softmax_sums" else 16), row
