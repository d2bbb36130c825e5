"""``attempts.jsonl``: every start of a run, how far it came and why it ended. Without torch.

A line adds what became known of an attempt; the lines of one number together are the attempt.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any

from megatron_ngpt.console import say
from megatron_ngpt.run.checkpoints import checkpoints, step_of
from megatron_ngpt.run.facts import is_a, json_lines, usable
from megatron_ngpt.run.owner import Owner

FILE = "attempts.jsonl"
METRICS = "metrics.jsonl"
VITALS = "vitals.jsonl"
TROUBLE = "trouble"
"""Folder of the stacks and tracebacks of the attempt that runs."""

REFUSED = (ValueError, FileNotFoundError, ModuleNotFoundError)
"""What is wrong with what was asked, not with how it went: to start again does not help."""

_LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe")


@dataclass(frozen=True)
class Attempt:
    """One start of a run; times are seconds since 1970."""

    number: int
    started: float = 0.0
    job: str = ""
    restarts: int = 0
    nodes: str = ""
    ranks: int = 0
    checkpoints: str = ""
    """Folder of the checkpoints."""
    resumed_at: int = -1
    """Steps done when it began to train; -1 when it did not come so far."""
    first_step: float = 0.0
    """When it had done its first step; 0 when it did none."""
    ended: float = 0.0
    """When it ended, or last showed life if it could not tell."""
    step: int = -1
    """Steps done when it ended."""
    saved: int = 0
    """Step of the newest checkpoint when it ended."""
    saves: int = 0
    """Checkpoints that it has finished."""
    save_seconds: float = 0.0
    """From the beginning of a save until it counted, all of them together; in the background as a
    rule."""
    longest_save: float = 0.0
    """The same of the longest one."""
    faults: int = 0
    """Steps of the run so far that were refused, as faults.jsonl tells."""
    undone: int = 0
    """Steps of the run so far that rollbacks gave up."""
    started_over: bool = False
    """Whether it began at step 1 again because the run's checkpoints were gone."""
    reason: str = ""
    """done, signal, walltime, refused, error, rank died, hang, killed, never started; "" while it
    runs."""
    detail: str = ""


def read_attempts(run_dir: Path) -> list[Attempt]:
    """All attempts of a run, oldest first; none when it has no such file."""
    found: dict[int, dict[str, Any]] = {}
    for line in json_lines(run_dir / FILE):
        facts = usable(Attempt, line)
        if "number" in facts:
            found.setdefault(facts["number"], {}).update(facts)
    return [Attempt(**facts) for _, facts in sorted(found.items())]


def add(run_dir: Path, number: int, **facts: Any) -> None:
    """Write what became known of an attempt."""
    path = run_dir / FILE
    with path.open("a+b") as stream:
        torn = stream.tell() and path.read_bytes()[-1:] != b"\n"
        stream.write(b"\n" * bool(torn) + json.dumps({"number": number, **facts}).encode() + b"\n")


def begin(run_dir: Path, **facts: Any) -> int:
    """Open the next attempt, and close the one before if it could not; returns its number."""
    run_dir.mkdir(parents=True, exist_ok=True)
    close_dead(run_dir)
    attempts = read_attempts(run_dir)
    number = attempts[-1].number + 1 if attempts else 1
    add(run_dir, number, started=time.time(), **facts)
    return number


def close_dead(run_dir: Path) -> None:
    """Find out how the last attempt ended, if it did not tell itself and runs no more."""
    attempts = read_attempts(run_dir)
    if not attempts or attempts[-1].reason:
        return
    found = closed(run_dir, attempts[-1])
    known = ("ended", "step", "saved", "reason", "detail")
    add(run_dir, found.number, **{name: getattr(found, name) for name in known})
    if (run_dir / TROUBLE).exists():
        (run_dir / TROUBLE).rename(run_dir / f"{TROUBLE}_attempt_{found.number:04d}")


def closed(run_dir: Path, last: Attempt) -> Attempt:
    """The last attempt with what its traces tell about its end."""
    records, path = read_metrics(run_dir), run_dir / METRICS
    reason, detail = _cause(run_dir / TROUBLE)
    return replace(
        last,
        ended=max(path.stat().st_mtime if path.exists() else 0.0, last.started),
        step=max([last.resumed_at, *(int(record["step"]) for record in records[-1:])]),
        saved=max(last.saved, newest(last)),
        reason=reason,
        detail=detail,
    )


def newest(attempt: Attempt) -> int:
    """Step of the newest checkpoint of a run, 0 when there is none."""
    found = checkpoints(Path(attempt.checkpoints)) if attempt.checkpoints else []
    return step_of(found[0]) if found else 0


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Every record of a run's ``metrics.jsonl``."""
    return [record for record in read_records(run_dir / METRICS) if _is_record(record)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file of records; none where there is no such file."""
    return list(json_lines(path))


def _is_record(record: dict[str, Any]) -> bool:
    """Whether an object is a step's: what is reckoned with are numbers."""
    numbers = [record[name] for name in ("tokens", "step_seconds") if name in record]
    return is_a("int", record.get("step")) and all(is_a("float", number) for number in numbers)


def _cause(trouble: Path) -> tuple[str, str]:
    """Reason and detail from the first lines of what the ranks left behind."""
    if stacks := _first_lines(trouble, "*.stack"):
        return "hang", "; ".join(stacks[:4])
    errors = _first_lines(trouble, "*.error")
    causes = [line for line in errors if not any(word in line for word in _LOST)]
    if not causes:  # only that another rank answers no more
        return ("rank died", errors[0]) if errors else ("killed", "")
    refused = any(f": {error.__name__}: " in causes[0] for error in REFUSED)
    return "refused" if refused else "error", causes[0]


def _first_lines(folder: Path, pattern: str) -> list[str]:
    """Of all files that match, the oldest first."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in found]
    return [text.partition("\n")[0] for text in texts if text]


class AttemptRecord:
    """Records the attempt that this process is part of, as a context manager.

    Rank 0 writes ``attempts.jsonl``; any rank that ends by an error leaves it with its traceback
    in ``trouble/rank_00000.error``.

    Args:
        run_dir: the run's folder.
        rank: this process's.
        owner: of the run's folder, which nobody else may own; None in tests of other things.
        facts: fields of :class:`Attempt` that are known from the start.
    """

    def __init__(self, run_dir: Path, rank: int, owner: Owner | None = None, **facts: Any) -> None:
        self.run_dir, self.rank, self.owner = run_dir, rank, owner
        self.number = begin(run_dir, **facts) if rank == 0 else 0
        self.waiting: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Write what became known, on rank 0; with the next note where the disk is full.

        Raises:
            OwnerLost: another start has taken the run over.
        """
        if self.rank == 0:
            told = bool(self.waiting)
            self.waiting |= facts
            try:
                if self.owner:
                    self.owner.check()
                add(self.run_dir, self.number, **self.waiting)
                self.waiting = {}
            except OSError as err:
                if not told:
                    say(f"{self.run_dir / FILE}: {err}; the run goes on", sys.stderr)

    def __enter__(self) -> AttemptRecord:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and (not self.owner or self.owner.may_leave(self.run_dir)):
            with suppress(OSError):  # a full disk shall not hide the error itself
                self._leave(error)

    def _leave(self, error: Exception) -> None:
        folder = self.run_dir / TROUBLE
        folder.mkdir(parents=True, exist_ok=True)
        first = f"rank {self.rank}: {type(error).__name__}: {shorten(str(error), 240)}"
        path = folder / f"rank_{self.rank:05d}.error"
        path.write_text(f"{first}\n\n{''.join(traceback.format_exception(error))}", "utf-8")
