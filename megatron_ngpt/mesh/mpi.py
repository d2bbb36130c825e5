"""Sole home of mpi4py: what MPI is needed for beyond the launcher's environment variables."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from megatron_ngpt.extras import require


def agree_on_address(rank: int) -> tuple[str, int]:
    """Host name and free port of rank 0, known to every rank (collective, once per process).

    MPI is finalised right away: mpirun calls it a failure when a process ends without that, and
    nothing else here needs MPI.

    Raises:
        ModuleNotFoundError: mpi4py is missing; setting MASTER_ADDR and MASTER_PORT avoids it.
    """
    job = "meeting under mpirun (or set MASTER_ADDR and MASTER_PORT)"
    mpi = require("mpi4py.MPI", "mpi", job)
    everyone = mpi.COMM_WORLD
    one_host = everyone.Split_type(mpi.COMM_TYPE_SHARED).Get_size() == everyone.Get_size()
    place = None
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            place = ("127.0.0.1" if one_host else socket.gethostname(), probe.getsockname()[1])
    address, port = everyone.bcast(place, root=0)
    mpi.Finalize()
    return address, port


class Team:
    """All processes that mpirun or srun has started, for jobs that need MPI and no tensors.

    Waiting for the others leaves the core to them.

    Attributes:
        rank, size: of this process, and of all.
        mates: processes, this one included, that may run on just the same cores of this host.

    Raises:
        ModuleNotFoundError: mpi4py is missing.
    """

    def __init__(self) -> None:
        mpi = require("mpi4py.MPI", "mpi", "--mpi")
        self._everyone = mpi.COMM_WORLD
        self.rank, self.size = self._everyone.Get_rank(), self._everyone.Get_size()
        host = self._everyone.Split_type(mpi.COMM_TYPE_SHARED)
        cores = host.allgather(frozenset(os.sched_getaffinity(0)))
        self.mates = cores.count(cores[host.Get_rank()])

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank (collective)."""
        self._wait()
        return self._everyone.bcast(value, root=0)

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value by rank, on every rank (collective)."""
        self._wait()
        found: list[Any] = self._everyone.allgather(value)
        return found

    def _wait(self) -> None:
        # MPI's own waiting keeps a core busy
        barrier = self._everyone.Ibarrier()
        while not barrier.Test():
            time.sleep(0.02)
