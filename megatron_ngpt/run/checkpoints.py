"""The folder of a run's checkpoints: names, the pointer ``latest``, publishing and cleaning up.

Everything here is done by one rank. A checkpoint gets its name by one rename when it is whole, and
loses it by one rename before it is deleted: a folder ``step_...`` is never half of one.
"""

from __future__ import annotations

import re
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ngpt.plain_json import parse_object
from megatron_ngpt.run.durable import (
    INDEX,
    DamagedCheckpoint,
    sync_folder,
    write_durably,
)
from megatron_ngpt.run.facts import is_a

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

    left_out: tuple[tuple[int, int], ...] = ()
    """Tokens of the stream, from the first to one past the last, that no step gets."""

    losses: tuple[float, ...] = ()
    """Of the last steps, where train.spike_threshold measures by them."""


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, newest first, whatever their names say of their age."""
    found = [
        p for p in folder.glob(f"{_PREFIX}*") if re.fullmatch(f"{_PREFIX}[0-9]{{1,18}}", p.name)
    ]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Step of a checkpoint: its own state decides, its name where that cannot be read."""
    try:
        return read_progress(checkpoint).step
    except DamagedCheckpoint:
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
        state = parse_object(path.read_text(encoding="utf-8"))
        step, tokens, record = state["step"], state["tokens"], dict(state.get("record", {}))
        left_out = tuple((first, end) for first, end in state.get("left_out", ()))
        losses = tuple(state.get("losses", ()))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DamagedCheckpoint(f"{path}: {err!r}") from err
    whole = (step, tokens, *(number for span in left_out for number in span))
    sound = all(is_a("int", number) and number >= 0 for number in whole)
    figures = (*record.values(), *losses)
    if not sound or not all(isinstance(figure, int | float) for figure in figures):
        raise DamagedCheckpoint(f"{path}: it holds what this program does not write: {state}"[:500])
    return Progress(step, tokens, record, left_out, losses)


def newest_here(folder: Path) -> Progress:
    """How far the newest checkpoint in a folder has come that tells; a fresh Progress without one.

    A run that resumes passes over the others, too.
    """
    for checkpoint in checkpoints(folder):
        with suppress(DamagedCheckpoint):
            return read_progress(checkpoint)
    return Progress()


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of a step into, under a name that none had before.

    So that a process which stood still while another took the run over writes into nothing: its
    folder is gone, and the other's is not its own.
    """
    temporary = folder / f"{_TEMPORARY}{_PREFIX}{step:08d}_{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    return temporary


def publish(temporary: Path, keep: int) -> None:
    """Give a folder of :func:`begin`, all files written, its name; then drop old checkpoints."""
    folder = temporary.parent
    final = folder / temporary.name.removeprefix(_TEMPORARY).rpartition("_")[0]
    sync_folder(temporary)
    pointer = _write_pointer(final)
    temporary.rename(final)
    sync_folder(folder)
    pointer.rename(folder / LATEST)
    for old in checkpoints(folder)[keep:] if keep else []:
        shutil.rmtree(old.rename(folder / f"{_TEMPORARY}{old.name}"))


def point_latest(checkpoint: Path) -> None:
    """Write a complete checkpoint's name into the file ``latest`` beside it."""
    _write_pointer(checkpoint).rename(checkpoint.with_name(LATEST))


def _write_pointer(checkpoint: Path) -> Path:
    """The next ``latest``, not yet in its place.

    While it lies there, a ``latest`` that does not name the newest checkpoint was not edited: its
    replacement was interrupted.
    """
    pointer = checkpoint.with_name(f"{_TEMPORARY}{LATEST}_{uuid.uuid4().hex[:8]}")
    write_durably(pointer, f"{checkpoint.name}\n")
    return pointer


def set_aside(checkpoint: Path, why: str = "damaged") -> Path:
    """Rename a checkpoint that shall not be resumed, so that it no longer counts."""
    aside = checkpoint.with_name(f"{why}_{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def settle(folder: Path) -> list[str]:
    """Put a folder of checkpoints in order before a start; what was done, for people to read.

    What an interrupted save left is removed, a folder that was renamed gets the name of its own
    step, and where ``latest`` was edited to name an older checkpoint, newer ones are set aside.
    """
    interrupted = any(folder.glob(f"{_TEMPORARY}{LATEST}_*"))
    told = [_renamed(checkpoint) for checkpoint in checkpoints(folder)]
    found, pointer = checkpoints(folder), folder / LATEST
    if found and interrupted:
        point_latest(found[0])  # before its sign goes
    clear_temporary(folder)
    if found and pointer.is_file():
        told += _gone_back(found, pointer.read_text(encoding="utf-8", errors="replace").strip())
    return [line for line in told if line]


def _renamed(checkpoint: Path) -> str:
    """Give a checkpoint the name of its own step, unless it has it."""
    own = checkpoint.with_name(f"{_PREFIX}{step_of(checkpoint):08d}")
    if own.name == checkpoint.name:
        return ""
    there = set_aside(checkpoint, "misnamed") if own.exists() else checkpoint.rename(own)
    return f"{checkpoint} holds step {step_of(own)}, whatever its name says: renamed to {there}"


def _gone_back(found: list[Path], named: str) -> list[str]:
    """Set aside what is newer than the checkpoint that ``latest`` names."""
    names = [checkpoint.name for checkpoint in found]
    if named not in names:
        return [f"{LATEST} names {named}, which is not there: the newest, {names[0]}, is taken"]
    newer = found[: names.index(named)]
    return [f"{LATEST} names {named}: {set_aside(path, 'undone')} is set aside" for path in newer]


def clear_temporary(folder: Path) -> None:
    """Remove what an interrupted save left."""
    for left in folder.glob(f"{_TEMPORARY}{LATEST}_*"):
        left.unlink()
    for left in folder.glob(f"{_TEMPORARY}{_PREFIX}*"):
        shutil.rmtree(left)
