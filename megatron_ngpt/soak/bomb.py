"""What goes wrong inside a rank: it kills itself at an instant that was drawn before, and more."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}


@dataclass(frozen=True)
class Bomb:
    """When a rank kills itself, by SIGKILL."""

    kind: str = ""
    """clock: at a time; file: before its n-th change of the file system; resume: while it loads a
    checkpoint; step, evaluation or checkpoint: when that comes next for the n-th time. "" never."""
    count: int = 1
    """n."""
    delay: float = 0.0
    """Seconds after that, or after the start."""
    on_rank_0: bool = True
    """Or on any other rank."""


@dataclass(frozen=True)
class Faults:
    """What else is wrong around a rank."""

    slow_disk: float = 0.0
    """Seconds that each file of a checkpoint, and each renaming of one, takes longer."""
    wild_clock: int = 0
    """Seed of a time of day that jumps by days, forwards and back; 0 leaves it alone."""
    largest_file: int = -1
    """Bytes beyond which no file can be written, as on a full disk; -1 for no limit."""


class Trap:
    """Holds a bomb in this process, and knows what the process is doing."""

    def __init__(self, bomb: Bomb, log: Path) -> None:
        self.bomb, self.left, self.doing = bomb, bomb.count, "starting"
        self.log = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        if bomb.kind == "clock":
            self._soon()
        if bomb.kind == "file":
            sys.addaudithook(self._changes)

    def beat(self, doing: str) -> None:
        """The process says what comes next."""
        self.doing = doing.partition(" on ")[0]
        if self.bomb.kind and self.doing == self.bomb.kind:
            self._count()

    def loads(self) -> None:
        """It loads a checkpoint."""
        self.doing = "resume"
        if self.bomb.kind == "resume":
            self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            self._soon()

    def _soon(self) -> None:
        timer = threading.Timer(self.bomb.delay, self._explode, (self.bomb.kind,))
        timer.daemon = True
        timer.start()

    def _changes(self, event: str, details: tuple[Any, ...]) -> None:
        if event not in FILE_CHANGES or (event == "open" and not _writes(details)):
            return
        self.left -= 1
        if self.left == 0:
            self._explode(f"{event} {Path(os.fsdecode(details[0])).name}")

    def _explode(self, why: str) -> None:
        os.write(self.log, f"{self.doing}\t{self.bomb.kind}\t{why}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _writes(details: tuple[Any, ...]) -> bool:
    path, _, flags = details
    return isinstance(path, str | bytes) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def set_trap(bomb: Bomb, faults: Faults, log: Path) -> None:
    """Put everything in place, in a process that is about to start a run."""
    from megatron_ngpt.engine.checkpoint import checkpointer, files
    from megatron_ngpt.train.watch import Watch

    if faults.largest_file >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.largest_file, faults.largest_file))
    if faults.wild_clock:
        time.time = _jumping(time.time, random.Random(faults.wild_clock))
    trap = Trap(bomb, log)
    beat, load = Watch.beat, checkpointer.Checkpointer._load

    def beating(watch: Watch, step: int, doing: str) -> None:
        trap.beat(doing)
        beat(watch, step, doing)

    def loading(self: checkpointer.Checkpointer, checkpoint: Path) -> Any:
        trap.loads()
        return load(self, checkpoint)

    Watch.beat = beating  # type: ignore[method-assign, assignment]
    checkpointer.Checkpointer._load = loading  # type: ignore[method-assign]
    if faults.slow_disk:
        files.write = _later(faults.slow_disk, files.write)
        checkpointer.publish = _later(faults.slow_disk, checkpointer.publish)


def _later(seconds: float, function: Callable) -> Callable:
    def later(*args: Any) -> Any:
        time.sleep(seconds)
        return function(*args)

    return later


def _jumping(now: Callable[[], float], chance: random.Random) -> Callable[[], float]:
    """A clock that is set anew, by up to a week, every few times that one looks."""
    off = [0.0]

    def jumped() -> float:
        if chance.random() < 0.2:
            off[0] = chance.uniform(-604800, 604800)
        return now() + off[0]

    return jumped
