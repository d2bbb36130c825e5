"""The folder of a run's checkpoints: names, the pointer ``latest``, publishing and cleaning up.

Everything here is done by one rank. A checkpoint gets its name by one rename when it is whole, and
loses it by one rename before it is deleted: a folder ``step_...`` is never half of one.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ngpt.run.durable import (
    INDEX,
    DamagedCheckpoint,
    sync_folder,
    write_durably,
)

LATEST = "latest"
STATE = "state.json"
_PREFIX = "step_"
_TEMPORARY = ".writing_"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps done."""

    tokens: int = 0
    """Tokens of the training stream consumed."""

    record: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step when its evaluation was cut short and is still owed, else empty."""


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, newest first."""
    found = [p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Step that a checkpoint's name tells."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def find_checkpoint(place: Path) -> Path:
    """A checkpoint itself, or the newest one in a folder of checkpoints or in a run's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    if (place / INDEX).is_file() or (place / STATE).is_file():
        return place
    for folder in (place, place / "checkpoints"):
        if found := checkpoints(folder):
            return found[0]
    raise FileNotFoundError(f"{place}: there is no complete checkpoint in it")


def read_progress(checkpoint: Path) -> Progress:
    """Step and data position of a checkpoint.

    Raises:
        DamagedCheckpoint: ``state.json`` is missing or does not hold them.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return Progress(int(state["step"]), int(state["tokens"]), dict(state.get("record", {})))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DamagedCheckpoint(f"{path}: {err!r}") from err


def newest_here(folder: Path) -> Progress:
    """How far the newest checkpoint in a folder has come that tells; a fresh Progress without one.

    A run that resumes passes over the others, too.
    """
    for checkpoint in checkpoints(folder):
        with suppress(DamagedCheckpoint):
            return read_progress(checkpoint)
    return Progress()


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of a step into."""
    temporary = folder / f"{_TEMPORARY}{_PREFIX}{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return temporary


def publish(temporary: Path, keep: int) -> None:
    """Give a folder of :func:`begin`, all files written, its name; then drop old checkpoints."""
    folder = temporary.parent
    final = folder / temporary.name.removeprefix(_TEMPORARY)
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(folder)
    point_latest(final)
    for old in checkpoints(folder)[keep:] if keep else []:
        shutil.rmtree(old.rename(folder / f"{_TEMPORARY}{old.name}"))


def point_latest(checkpoint: Path) -> None:
    """Write a complete checkpoint's name into the file ``latest`` beside it."""
    pointer = checkpoint.with_name(f".{LATEST}")
    write_durably(pointer, f"{checkpoint.name}\n")
    pointer.rename(checkpoint.with_name(LATEST))


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it does not count among the newest to keep."""
    aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def clear_temporary(folder: Path) -> None:
    """Remove what an interrupted save left."""
    for left in folder.glob(f"{_TEMPORARY}{_PREFIX}*"):
        shutil.rmtree(left)
