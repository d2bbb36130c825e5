"""A rank that stands still is noticed, tells where, and ends."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

EXIT_CODE = 3
"""Of a rank that the watchdog ended."""

FIRST = 3
"""How many times the limit start-up and first step may take."""


class Watchdog:
    """A thread that ends the process when :meth:`beat` was not called for too long.

    It writes the stack of every thread to ``folder/rank_00000.stack`` and waits, so that the other
    ranks, which stand still because this one does, write theirs before the launcher kills them.

    Args:
        limit: seconds without a beat; 0 never ends anything.
        folder: for the stacks; made when needed.
        rank: this process's.
        may_leave: whether the folder is still this run's; otherwise the stacks go to stderr.
    """

    def __init__(
        self,
        limit: float,
        folder: Path,
        rank: int,
        may_leave: Callable[[], bool] = lambda: True,
    ) -> None:
        self.limit, self.folder, self.rank, self.may_leave = limit, folder, rank, may_leave
        self.grace = min(10.0, limit / 4)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.beat(-1, "starting", slow=True)

    def beat(self, step: int, doing: str, *, slow: bool = False) -> None:
        """Tell that there was progress and what comes next; ``slow`` gives that more time."""
        patience = self.limit * (FIRST if slow else 1)
        self.now = (step, doing, time.monotonic(), time.monotonic() + patience)

    def __enter__(self) -> Watchdog:
        if self.limit:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.limit:
            self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(min(1.0, self.limit / 20)):
            # Code that keeps the interpreter's lock stops this thread, too: then C ends the process
            faulthandler.dump_traceback_later(self.limit * FIRST, exit=True, file=2)
            if time.monotonic() > self.now[3]:
                self._end()
        faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        step, doing, since, _ = self.now
        told = (
            f"rank {self.rank} on {socket.gethostname()}: no progress for "
            f"{time.monotonic() - since:.0f} s after step {step}, {doing}"
        )
        path = self.folder / f"rank_{self.rank:05d}.stack"
        try:
            self._leave(path, told)
        except OSError as err:  # also where the file system is what stands still
            print(f"{told}; {path}: {err}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
        time.sleep(self.grace)
        os._exit(EXIT_CODE)

    def _leave(self, path: Path, told: str) -> None:
        if not self.may_leave():
            raise PermissionError("the run is somebody else's now")
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as stream:
            stream.write(f"{told}\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
        print(f"{told}; stacks in {path}", file=sys.stderr, flush=True)
