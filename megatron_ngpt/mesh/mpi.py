"""Sole home of mpi4py: what MPI is needed for beyond the launcher's environment variables."""

from __future__ import annotations

import socket

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
