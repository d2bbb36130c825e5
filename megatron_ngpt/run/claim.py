"""The claims on a folder, as files that need no locks.

``owner/00000003.json`` is the third claim on a folder; the one with the highest number counts. A
claim is made by creating the next number, which succeeds for one process alone, also over NFS. Its
second line is overwritten in place, which needs no space on a full disk: a counter while the owner
lives, ``released`` once it ended.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from megatron_ngpt.plain_json import parse_object
from megatron_ngpt.run.facts import is_a, usable
from megatron_ngpt.run.process import machine, process_start

FOLDER = "owner"
RELEASED = "released"
_WIDTH = 20
_LONGEST = 30 * 86400
"""Seconds of a lease that are still meant."""


@dataclass(frozen=True)
class Claim:
    """Who says that a folder is theirs."""

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=lambda: os.uname().nodename)
    machine: str = field(default_factory=machine)
    pid: int = field(default_factory=os.getpid)
    process_start: str = field(default_factory=lambda: process_start(os.getpid()))
    started: str = ""
    """When, for people to read."""
    job: str = ""
    launch: str = ""
    """What all ranks of one start have in common."""
    series: dict[str, int] = field(default_factory=dict)
    """Starts of which only the last lives: a job with how often it was requeued."""
    lease: float = 120.0
    """Seconds without a sign of life after which somebody else may take over."""

    @cached_property
    def line(self) -> str:
        """As it stands in its file."""
        return f"{json.dumps(asdict(self))}\n"

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.started}"


@dataclass(frozen=True)
class Held:
    """The claim that counts on a folder, as it was read."""

    number: int
    claim: Claim | None
    """None while it cannot be read: half written, or of another version."""
    pulse: str
    """Differs each time the owner showed life."""

    @property
    def released(self) -> bool:
        """Whether the owner ended by itself."""
        return self.pulse == RELEASED


def path_of(folder: Path, number: int) -> Path:
    """The file of a claim."""
    return folder / FOLDER / f"{number:08d}.json"


def numbers(folder: Path) -> list[int]:
    """Of all claims on a folder, the oldest first."""
    try:
        names = os.listdir(folder / FOLDER)
    except FileNotFoundError:
        return []
    return sorted(int(name[:-5]) for name in names if name[:-5].isdigit() and name[-5:] == ".json")


def read(folder: Path) -> Held | None:
    """The claim that counts; None when there never was one."""
    while found := numbers(folder):
        try:
            text = path_of(folder, found[-1]).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue  # it was taken over in between, and is gone
        first, _, second = text.partition("\n")
        claim = _parsed(first)
        return Held(found[-1], claim, second.strip() if claim else text)
    return None


def _parsed(line: str) -> Claim | None:
    """The claim of a line; None where it says anything else, or a lease that nobody means."""
    try:
        facts = parse_object(line)
        claim = Claim(**facts)
    except (ValueError, TypeError):
        return None
    sound = usable(Claim, facts).keys() == facts.keys() and 0 < claim.lease <= _LONGEST
    counts = (is_a("int", count) for count in claim.series.values()) if sound else ()
    return claim if sound and all(counts) else None


def create(folder: Path, number: int, claim: Claim) -> bool:
    """Make a claim by its number; False when somebody else has that number."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    path = path_of(folder, number)
    whole = path.with_name(f".{claim.token}")
    text = f"{claim.line}{'0':<{_WIDTH}}\n"
    try:
        with whole.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(whole, path)  # its text is there as soon as its name is
        except FileExistsError:
            return owns(folder, number, claim)  # NFS may answer so for one's own repeated request
        except OSError:  # no links here: exclusive creation, whose text comes a moment later
            return _create_in_place(path, text)
    finally:
        whole.unlink(missing_ok=True)
    return True


def _create_in_place(path: Path, text: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        return False
    return True


def owns(folder: Path, number: int, claim: Claim) -> bool:
    """Whether a claim is the one that counts."""
    if numbers(folder)[-1:] != [number]:
        return False
    try:
        return path_of(folder, number).read_text("utf-8", "replace").startswith(claim.line)
    except FileNotFoundError:
        return False


def write_pulse(folder: Path, number: int, pulse: int | str) -> None:
    """Overwrite a claim's second line."""
    path = path_of(folder, number)
    with path.open("r+b", buffering=0) as stream:
        at = stream.readline().__len__()
        stream.seek(at)
        stream.write(f"{pulse:<{_WIDTH}}".encode())


def drop_older(folder: Path, number: int) -> None:
    """Delete the claims that one has replaced."""
    for old in numbers(folder):
        if old < number:
            path_of(folder, old).unlink(missing_ok=True)
