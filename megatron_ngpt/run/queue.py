"""What SLURM says of a job; "" where there is no SLURM. Without torch."""

from __future__ import annotations

import shutil
import subprocess


def in_queue(job: str) -> tuple[str, str]:
    """State of a job and what it waits for or how long it may run: ``PENDING``, ``at ... (...)``.

    Returns:
        ``("", "")`` without SLURM or number, ``("GONE", "")`` when no such job is in the queue.
    """
    if not job or not shutil.which("squeue"):
        return "", ""
    ask = ["squeue", "-h", "-j", job, "-o", "%T|%S|%r|%L"]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    if not lines:  # an old number is an error of its own kind; any other tells nothing
        unknown = done.returncode and "Invalid job id" not in done.stderr
        return ("", "") if unknown else ("GONE", "")
    state, start, reason, left = lines[0].split("|")
    if state == "PENDING":
        return state, f"at {start} ({reason})" if start != "N/A" else f"({reason})"
    return state, f"{left} before its time limit"
