"""Run what a study still misses, several runs at a time, each by the ordinary command.

A run keeps its folder until its row is written, so that a study that is killed goes on from the
newest checkpoint of every run under way. Several runners may share a folder, such as the tasks of a
SLURM array: each run is held by a lock on a file in its folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from megatron_ngpt.study.after import lacks, measured
from megatron_ngpt.study.corpus import Corpus
from megatron_ngpt.study.place import PRETRAIN, Place, add_cost, claimed, code_version
from megatron_ngpt.study.plan import Run, Study, every_run, merged, missing
from megatron_ngpt.study.results import Row, add_row, losses, row_of

TRIES = 3
"""Starts of a run that fail, in a row, before the study gives up."""


class StudyFailed(RuntimeError):
    """A run of a study ends with an error again and again."""


@dataclass
class Working:
    """A run that a process of ours is at."""

    run: Run
    process: subprocess.Popen[bytes]
    lock: IO[str]
    failures: int = 0


@dataclass
class Runner:
    """Runs a study to its end.

    Args:
        study: what to run.
        corpus: what every run reads.
        place: where files lie.
        jobs: runs at a time, each on one core.
        threads: of each run.
        tell: is given a line for every start and end.
    """

    study: Study
    corpus: Corpus
    place: Place
    jobs: int = 1
    threads: int = 1
    tell: Callable[[str], None] = print
    working: list[Working] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def go(self) -> None:
        """Until nothing is missing; ends its children when it is ended itself.

        Raises:
            StudyFailed: a run failed several times in a row.
            ValueError: a finished run could not be measured.
        """
        self._measure_kept()
        try:
            while self._start_some() or self.working:
                self._wait()
        finally:
            for work in self.working:
                work.process.terminate()  # saves and ends: the next call goes on from there
            for work in self.working:
                work.process.wait()

    def _measure_kept(self) -> None:
        """Add to rows what the study asks for now, where the runs' folders were kept."""
        for run in every_run(self.study, rows := self.place.known(), self.corpus.digest):
            folder = self.place.of(run)
            if lacks(self.study, rows[run.id]) and (folder / "checkpoints").exists():
                self.tell(f"measure {run.label}")
                found = measured(self.study, run, self.corpus, folder)
                add_row(self.place.rows, {"id": run.id, **found})

    def _start_some(self) -> bool:
        """Fill the free places; whether anything is running or held by another runner."""
        wanted = missing(self.study, losses(self.place.known()), self.corpus.digest)
        busy = {work.run.id for work in self.working}
        for run in wanted:
            if len(self.working) >= self.jobs:
                break
            if run.id not in busy and (lock := claimed(self.place.of(run))) is not None:
                self.working.append(Working(run, self._start(run), lock))
                busy.add(run.id)
        if wanted and not self.working:
            time.sleep(5.0)  # others are at what is left
        return bool(wanted)

    def _start(self, run: Run) -> subprocess.Popen[bytes]:
        folder = self.place.of(run)
        config = folder / "study_config.yaml"
        config.write_text(yaml.safe_dump(self._settings(run, folder)), encoding="utf-8")
        self.tell(f"start {run.label}")
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, str(PRETRAIN), "--config", str(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    def _settings(self, run: Run, folder: Path) -> dict[str, Any]:
        data = {
            "train": str(self.corpus.train),
            "valid": str(self.corpus.valid),
            "tokenizer": str(self.corpus.tokenizer),
        }
        paths = {"data": data, "logging": {"dir": str(folder)}, "checkpoint": {"keep": 1}}
        return merged(run.settings, paths)

    def _wait(self) -> None:
        """Until one of ours ends, or a few seconds."""
        for work in list(self.working):
            pid, status, usage = os.wait4(work.process.pid, os.WNOHANG)
            if pid:
                self.working.remove(work)
                code = os.waitstatus_to_exitcode(status)
                work.process.returncode = code
                self._ended(work, code, usage.ru_utime + usage.ru_stime)
                return
        if self.working:
            time.sleep(0.5)

    def _ended(self, work: Working, code: int, cpu_seconds: float) -> None:
        run, folder = work.run, self.place.of(work.run)
        spent = add_cost(folder / "cost.json", cpu_seconds)
        with work.lock:  # let go of last
            if code == 0 and _whole(folder, run):
                row = row_of(run, folder / "metrics.jsonl", spent, code_version())
                row |= measured(self.study, run, self.corpus, folder)
            elif reason := _diverged(folder):
                row = row_of(run, folder / "metrics.jsonl", spent, code_version(), reason)
            else:
                self._failed(run, folder, code)
                return
            add_row(self.place.rows, row)
            self.tell(f"done  {run.label}: loss {row['loss']}, {spent:.0f} s of CPU time")
            if not self.place.keep_runs:
                shutil.rmtree(folder)

    def _failed(self, run: Run, folder: Path, code: int) -> None:
        self.failures[run.id] = self.failures.get(run.id, 0) + 1
        self.tell(f"run {run.label} ended with exit code {code}, see {folder / 'output.txt'}")
        if self.failures[run.id] >= TRIES:
            raise StudyFailed(
                f"{run.label} failed {TRIES} times; the last lines of {folder / 'output.txt'} say "
                "why. Mend the study's settings and start it again: finished runs are kept"
            )


def _whole(folder: Path, run: Run) -> bool:
    records = list(_records(folder / "metrics.jsonl"))
    return bool(records) and records[-1]["step"] == run.settings["train"]["steps"]


def _records(path: Path) -> Iterator[Row]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


_NOT_FINITE = ("loss is ", "grad_norm is ")
"""How the training loop begins what it says of a value that is no number."""


def _diverged(folder: Path) -> str:
    """The line in which the run said that its loss or gradient is no number, or nothing."""
    output = folder / "output.txt"
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    found = [line for line in lines if any(f": {words}" in line for words in _NOT_FINITE)]
    return found[-1] if found else ""


@contextmanager
def ends_with_us() -> Iterator[None]:
    """SIGTERM becomes KeyboardInterrupt, so that runs under way are saved and ended."""
    import signal

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
