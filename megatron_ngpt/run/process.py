"""Which process on which machine, in a way that survives a reused number and a set clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

State = Literal["alive", "stopped", "gone", "unknown"]


def machine() -> str:
    """The kernel since its last boot, and which of its processes can be seen; "" if unknown.

    Two processes with the same answer see each other in ``/proc``.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return ""


def process_start(pid: int) -> str:
    """When a process started, in clock ticks since the boot; "" when there is none."""
    return _stat(pid)[1]


def state_of(where: str, pid: int, start: str) -> State:
    """What became of a process of the machine ``where`` that started at ``start``."""
    if not where or where != machine():
        return "unknown"
    letter, found = _stat(pid)
    if found != start or letter in "ZX":  # a zombie does nothing any more
        return "gone"
    return "stopped" if letter in "Tt" else "alive"


def _stat(pid: int) -> tuple[str, str]:
    """State and start of a process, as proc(5) has them."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X", ""
    fields = text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return fields[0], fields[19]
