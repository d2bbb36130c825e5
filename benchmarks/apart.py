"""Contestants in processes of their own, that take turns with everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.contestants import Conditions

HERE = Path(__file__).resolve().parents[1]


class Apart:
    """One contestant, alone in a process with the packages of the checkout ``root``.

    Raises:
        RuntimeError: it ended; what it said went to stderr.
    """

    def __init__(self, name: str, at: Conditions, root: Path = HERE) -> None:
        about = {
            "shape": vars(at.shape),
            "dtype": at.dtype,
            "zero_stage": at.zero_stage,
            "device": at.mesh.device.type,
            "peers": str(at.peers.resolve()) if at.peers and name.startswith("nvidia") else None,
        }
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(root.resolve())]
        self.name = name
        self.process = subprocess.Popen(
            [*command, name, json.dumps(about)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        warm = self._answer()
        self.parameters: int = warm["parameters"]
        self.peak_bytes: int = warm["peak_bytes"]
        self.losses: list[float] = []

    def lap(self) -> tuple[float, float]:
        """One step: seconds by the clock, and CPU seconds of the process."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = self._answer()
        self.losses = found["losses"]
        return found["wall"], found["cpu"]

    def __call__(self) -> None:
        """One step."""
        self.lap()

    def close(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(f"the process of {self.name} ended with exit code {code}")
        found: dict[str, Any] = json.loads(line)
        return found
