"""Files that lines are added to, on a disk that may be full for a while."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.console import say

LIMIT = 64 << 20
"""Bytes of lines that wait in memory; beyond them they are counted."""


class LineFile:
    """Appends lines and keeps those that the disk refuses, to write them later in their order.

    Args:
        path: the file.
        guard: called before each write; raises when the file is no longer this process's.
    """

    def __init__(self, path: Path, guard: Callable[[], None] = lambda: None) -> None:
        self.path, self.guard = path, guard
        self.waiting = b""
        self.lost, self.failing, self.handle = 0, False, -1

    def write(self, line: str) -> None:
        """Add a line, and those that wait, at once; on disk for other processes to read."""
        if len(self.waiting) < LIMIT:
            self.waiting += line.encode() + b"\n"
        else:
            self.lost += 1
        self._flush()

    def close(self) -> None:
        """Try a last time, and tell what was never written."""
        if self.waiting:
            self._flush()
        if missing := self.waiting.count(b"\n") + self.lost:
            say(f"{self.path}: {missing} lines could not be written", sys.stderr)
        self._let_go()

    def _flush(self) -> None:
        try:
            self.guard()
            if self.handle < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self.handle = os.open(self.path, flags, 0o666)
            while self.waiting:  # a disk that fills up takes part of them
                self.waiting = self.waiting[os.write(self.handle, self.waiting) :]
        except OSError as err:
            if not self.failing:
                say(f"{self.path}: {err}; the run goes on, its lines wait", sys.stderr)
            self.failing = True
            self._let_go()  # its folder may have been mounted anew when it is opened again
            return
        if self.failing:
            self.failing = False
            more = f", but for {self.lost} that were too many" if self.lost else ""
            say(f"{self.path}: written again, with all lines that waited{more}", sys.stderr)
            self.lost = 0

    def _let_go(self) -> None:
        if self.handle >= 0:
            with suppress(OSError):
                os.close(self.handle)
        self.handle = -1
