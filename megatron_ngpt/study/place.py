"""Where a study's files lie, who is at a run, what it has cost and which code ran it."""

from __future__ import annotations

import fcntl
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_ngpt.study.plan import Run
from megatron_ngpt.study.results import Row, read_rows

PRETRAIN = Path(__file__).resolve().parents[2] / "pretrain_ngpt.py"


@dataclass
class Place:
    """Where a study's files lie."""

    folder: Path
    """Run folders and this machine's rows."""
    committed: tuple[Path, ...] = ()
    """Rows that are there already and are not run again."""
    keep_runs: bool = False
    """Leave the folders of finished runs."""

    @property
    def rows(self) -> Path:
        """Where new rows go."""
        return self.folder / "results.jsonl"

    def known(self) -> dict[str, Row]:
        """All rows by id."""
        return read_rows((*self.committed, self.rows))

    def of(self, run: Run) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / f"{run.label}_{run.id[:6]}"


def claimed(folder: Path) -> IO[str] | None:
    """The lock of a run's folder, or None when another runner has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "study.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def add_cost(path: Path, cpu_seconds: float) -> float:
    """CPU seconds of all attempts of a run so far."""
    spent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    path.write_text(json.dumps(spent + cpu_seconds), encoding="utf-8")
    return float(spent + cpu_seconds)


def code_version() -> str:
    """Commit of the code, with a plus where files were changed; the package's version elsewhere."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
            cwd=PRETRAIN.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return told.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        from importlib import metadata

        return metadata.version("megatron-ngpt")
