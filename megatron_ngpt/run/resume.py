"""Before a start trains: where the run stands, and whether it may go on from there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_ngpt.config import Config
from megatron_ngpt.console import say
from megatron_ngpt.run.attempts import FILE, Attempt, read_attempts
from megatron_ngpt.run.changes import changes, name_of, refuse
from megatron_ngpt.run.checkpoints import DamagedCheckpoint, checkpoints, read_progress
from megatron_ngpt.run.ledger import (
    Entry,
    before,
    code_version,
    flat,
    package_versions,
    plain,
)


def starts_over(config: Config) -> bool:
    """Whether a run that had checkpoints begins at step 1 again, since they are gone.

    Raises:
        ValueError: they are gone, and checkpoint.start_over does not say so.
    """
    run_dir, folder = Path(config.logging.dir), Path(config.checkpoint_dir)
    found, had = checkpoints(folder), last_saved(read_attempts(run_dir))
    if found or not had:
        return False
    step = max(had.saved, had.resumed_at)
    if not config.checkpoint.start_over:
        raise ValueError(
            f"checkpoint.dir = {folder}: no checkpoint is there, but {run_dir / FILE} says that "
            f"this run saved step {step} in {had.checkpoints or 'a folder'}: set checkpoint.dir to "
            "where they are, or checkpoint.start_over to begin at step 1 again, which keeps what "
            "was recorded"
        )
    say(f"checkpoint.start_over: begins at step 1 again; this run had saved step {step}")
    return True


def last_saved(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt with the newest checkpoint since the run last started over; None without one."""
    for number, attempt in reversed(list(enumerate(attempts))):
        if attempt.started_over:
            attempts = attempts[number:]
            break
    had = [a for a in attempts if max(a.saved, a.resumed_at) > 0]
    return max(had, key=lambda a: max(a.saved, a.resumed_at)) if had else None


def entry_of(
    config: Config, attempt: int, topology: dict[str, Any], corpora: list[dict[str, Any]]
) -> Entry:
    """What this start goes on with, for the ledger; its step is not known yet."""
    return Entry(
        attempt=attempt,
        started=time.time(),
        settings=plain(flat(config.to_dict())),
        code=code_version(),
        packages=package_versions(),
        topology=topology,
        corpora=plain(corpora),
    )


def compare(config: Config, entry: Entry) -> Entry:
    """Tell what differs from the run so far, one line each; the entry with what was accepted.

    Raises:
        ValueError: something that breaks a guarantee, and train.accept_changes does not name it.
    """
    found = checkpoints(Path(config.checkpoint_dir))
    try:
        progress = read_progress(found[0]) if found else None
    except DamagedCheckpoint:
        progress = None  # which is told when it is loaded
    if progress is None:
        return entry
    old = before(Path(config.logging.dir), found[0], progress.step)
    if old is None:
        return entry
    defaults = plain(flat(Config().to_dict()))
    differ = changes(old, entry, defaults, progress.tokens)
    refuse(differ, config.train.accept_changes, progress.step)
    for change in differ:
        accepted = ", accepted" if change.breaks else ""
        say(f"changed at step {progress.step}{accepted}: {change}")
    return replace(entry, accepted=[name_of(change) for change in differ if change.breaks])
