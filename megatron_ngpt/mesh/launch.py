"""Who this process is, from whatever launcher started it; the only user of ``os.environ``.

torch is imported where a process joins the others: who only asks for help does not wait for it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megatron_ngpt.mesh.allocator import keep_freed_memory
from megatron_ngpt.mesh.mpi import agree_on_address

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


@dataclass(frozen=True)
class Launch:
    """Place of this process among all, and where they meet."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0

    @property
    def name(self) -> str:
        """The same on all ranks of one start, and another one for other starts."""
        alone = f"process {os.getpid()}" if self.world_size == 1 else ""
        return f"{self.world_size} ranks at {self.address}:{self.port}{alone}"


@dataclass(frozen=True)
class Job:
    """The scheduler's job that this process belongs to; empty outside of one."""

    id: str = ""
    restarts: int = 0
    """How often it was requeued."""
    nodes: str = ""
    """Its nodes, as SLURM abbreviates them: ``n[1-4]``."""
    ends_at: float = math.inf
    """When its time limit ends it, in seconds since 1970; infinity when that is not known."""
    series: dict[str, int] = field(default_factory=dict)
    """Of which series of starts this is which: whoever makes the next one has ended this one."""


# launcher -> (rank, world size, rank on this host); the first whose variables are set wins
_VARIABLES = {
    "torchrun or deepspeed": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "mpirun of Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    "mpirun of MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}


def read_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """Identity given by torchrun, the deepspeed launcher, mpirun or srun; plain python is alone.

    Under MPI without ``MASTER_ADDR`` rank 0 chooses the meeting point and tells the others
    through mpi4py.

    Raises:
        ValueError: several processes were started but nothing says where they meet, or a variable
            that should hold a number does not.
    """
    env = os.environ if environ is None else environ
    for launcher, (rank, size, local) in _VARIABLES.items():
        if rank in env and size in env:
            # srun --mpi=pmi2 sets PMI's rank and size but not its local rank
            local = local if env.get(local) else "SLURM_LOCALID"
            found = Launch(_number(env, rank), _number(env, size), _number(env, local))
            return found if found.world_size == 1 else _with_address(found, env, launcher)
    return Launch()


def read_job(environ: Mapping[str, str] | None = None) -> Job:
    """What SLURM says of the job; an element of an array has a number of its own."""
    env = os.environ if environ is None else environ
    series = {}
    if job := env.get("SLURM_JOB_ID"):
        name = f"slurm {env.get('SLURM_CLUSTER_NAME', '')} {job}"
        series[name] = _number(env, "SLURM_RESTART_COUNT")
    if env.get("TORCHELASTIC_RUN_ID", "none") != "none":  # which is what torchrun sets by default
        name = f"torchrun {env['TORCHELASTIC_RUN_ID']}"
        series[name] = _number(env, "TORCHELASTIC_RESTART_COUNT")
    return Job(
        series=series,
        id=env.get("SLURM_JOB_ID", ""),
        restarts=_number(env, "SLURM_RESTART_COUNT"),
        nodes=env.get("SLURM_JOB_NODELIST", ""),
        ends_at=_number(env, "SLURM_JOB_END_TIME") or math.inf,
    )


def _number(env: Mapping[str, str], name: str) -> int:
    """A variable's value, 0 when it is not set.

    Raises:
        ValueError: naming the variable, which some launcher should have set.
    """
    text = env.get(name) or "0"
    if not text.strip().isdecimal():
        raise ValueError(
            f"{name} = {text} in the environment: must be a whole number; unset it, or start "
            "through a launcher that sets it"
        )
    return int(text)


def _with_address(found: Launch, env: Mapping[str, str], launcher: str) -> Launch:
    address, port = env.get("MASTER_ADDR", ""), _number(env, "MASTER_PORT")
    if not (address and port):
        if not launcher.startswith("mpirun"):
            raise ValueError(
                f"{launcher} started {found.world_size} processes but MASTER_ADDR and MASTER_PORT "
                "are not set: export the first node's name and a free port"
            )
        address, port = agree_on_address(found.rank)
    return Launch(found.rank, found.world_size, found.local_rank, address, port)


def without_local_rank(argv: Sequence[str]) -> list[str]:
    """Command-line words less the ``--local_rank=N`` that the deepspeed launcher adds."""
    return [word for word in argv if not word.startswith(("--local_rank", "--local-rank"))]


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """Device of this process for ``engine.device`` = auto, cpu or cuda.

    Raises:
        ValueError: cuda was asked for and torch sees no GPU for this rank.
    """
    import torch

    seen = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cpu" or (wanted == "auto" and seen == 0):
        return torch.device("cpu")
    if local_rank >= seen:
        raise ValueError(
            f"engine.device = {wanted}: local rank {local_rank} has no GPU, torch sees {seen}: "
            "start at most one process per GPU or set engine.device to cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def start(launch: Launch, device: torch.device, deterministic: bool = False) -> None:
    """Join the default process group: gloo for CPU tensors, NCCL for CUDA tensors."""
    import torch.distributed as dist

    if deterministic:
        _same_bits_each_time()
    # DeepSpeed reads these two there, whoever launched
    os.environ["LOCAL_RANK"] = str(launch.local_rank)
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cpu":
        keep_freed_memory()
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if launch.world_size == 1:
        store: dist.Store = dist.HashStore()
    else:
        # torchrun's agent already listens on MASTER_PORT; everywhere else rank 0 opens the store
        agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        serves = launch.rank == 0 and not agent_store
        store = dist.TCPStore(launch.address, launch.port, launch.world_size, serves)
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size)


def _same_bits_each_time() -> None:
    """Nothing but deterministic algorithms; an operation that has none raises an error.

    See https://docs.pytorch.org/docs/stable/notes/randomness.html.
    """
    import torch

    # asked for by cuBLAS before the first product: its scratch memory, which several streams share
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # nothing reads memory that it has not written, and filling it first takes time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def tell(launch: Launch, why: str) -> None:
    """Print why the run ends, once although every rank may end for the same reason.

    Rank 0 tells at once, and its end makes the launcher end the others. A rank that is still there
    some seconds later ends alone and tells it itself, one per host first.
    """
    if launch.rank:
        time.sleep(3.0 if launch.local_rank == 0 else 6.0)
    print(why, file=sys.stderr, flush=True)


def finish(code: int = 0) -> None:
    """End the process with this exit code and nothing else.

    Gloo's threads may still want the interpreter's lock while Python finalises, which aborts a
    process whose work is done (exit code -6); a scheduler must never see that.
    """
    distributed = sys.modules.get("torch.distributed")  # not there when nothing was trained
    if code == 0 and distributed and distributed.is_initialized():
        distributed.destroy_process_group()  # after a failure the others may never answer
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
