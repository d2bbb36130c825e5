"""One job at a time for an output prefix, and one process at a time for a shard."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def exclusive(path: Path, job: str) -> Iterator[None]:
    """Hold a lock file for as long as the block runs, or the process lives.

    The lock is the system's (``flock``), so a process that dies, however it dies, releases it.

    Args:
        path: the lock file; its folder exists.
        job: what must not run twice, for the message.

    Raises:
        ValueError: another process holds it, which the message names.
        OSError: the file system has no locks.
    """
    with _locked(path, job) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def next_number(path: Path) -> int:
    """0, 1, 2, ...: a number that no other process of any node has got from this file.

    Args:
        path: an empty file at first. A process that is killed keeps nobody waiting.

    Raises:
        FileNotFoundError: another attempt at the job has removed the file.
    """
    with path.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = int(file.read() or b"0")
        os.pwrite(file.fileno(), b"%d" % (number + 1), 0)
        return number


def _locked(path: Path, job: str) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{job} is already being made by {holder}: wait for it or stop it; if mpirun or "
                "srun started several processes of one job, pass --mpi"
            ) from err
        # The holder before may have removed the file after this process opened it.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()
