"""A real SLURM cluster on this machine: one controller, and nodes that can be killed.

Each node is a slurmd in pid, mount and uts namespaces of its own, so that to kill one process is to
pull the plug of the node. Needs root, SLURM, munge and util-linux; no systemd.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "unshare", "setpriv")
_PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib")

_CONFIGURATION = """
ClusterName=lab
SlurmctldHost=ctl(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=1
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
SlurmdTimeout=10
MinJobAge=3600
"""
_NODE = (
    "NodeName={name} NodeAddr=127.0.0.{address} Port={port} CPUs=8 SocketsPerBoard=1 "
    "CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000\n"
)
# jobs of `urgent` take the others' nodes, after a grace
_PARTITIONS = """
PartitionName=DEFAULT Nodes=n[1-{size}] MaxTime=INFINITE GraceTime=60
PartitionName=main PriorityTier=1 PreemptMode=REQUEUE Default=YES
PartitionName=cheap PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent PriorityTier=2 PreemptMode=OFF
"""
_SPACES = ("--mount", "--uts", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
_BOOT = """
hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount -t tmpfs tmpfs /dev/shm
[ ! -d "$2/pmix" ] || mount --bind "$2/pmix" "$3"
exec slurmd -D -N "$1"
"""


def missing() -> str:
    """What keeps a cluster from running here, or ""."""
    absent = [name for name in NEEDED if not shutil.which(name, path=_path())]
    if os.geteuid() != 0:
        return "needs root"
    if absent:
        return f"needs {', '.join(absent)} (apt-get install slurm-wlm munge)"
    trial = subprocess.run(["unshare", *_SPACES, "true"], capture_output=True, text=True)
    return f"may not make namespaces: {trial.stderr.strip()}" if trial.returncode else ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class Cluster:
    """Nodes n1 to nN and the commands of SLURM that talk to their controller."""

    folder: Path
    size: int
    port: int
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For everything that talks to the cluster."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM", "SBATCH"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def start(self) -> None:
        """Boot everything; returns when all nodes are idle."""
        self._configure()
        munged = ["munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key"]
        munged += [f"--socket={self.folder}/munge.sock", f"--pid-file={self.folder}/munged.pid"]
        munged += [f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed"]
        self._spawn("munged", munged)
        wait_for(lambda: (self.folder / "munge.sock").exists(), 20, "munged")
        # the controller compares its own host name with the configured one
        self._spawn("ctl", ["unshare", "--uts", "sh", "-c", "hostname ctl; exec slurmctld -D"])
        for number in range(1, self.size + 1):
            self.boot(f"n{number}")
        wait_for(lambda: len(self.idle()) == self.size, 60, f"the nodes, see {self.folder}/*.log")

    def boot(self, node: str) -> None:
        """Switch a node on."""
        boot = ["bash", "-c", _BOOT, "boot", node, str(self.folder), str(_PMIX)]
        self._spawn(node, ["unshare", *_SPACES, *boot])

    def pull_plug(self, node: str) -> None:
        """Kill a node and everything on it, and let SLURM notice at once."""
        self._kill(node)
        self.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=gone")

    def repair(self, node: str) -> None:
        """Switch a killed node on again; returns when it is idle."""
        self.boot(node)
        wait_for(lambda: node in self.idle(), 60, f"{node} to come back")

    def stop(self) -> None:
        """Kill everything; the mounts go with their namespaces."""
        for name in list(self.processes):
            self._kill(name)

    def command(self, *words: str, check: bool = True, **options: Any) -> str:
        """Run one of SLURM's commands; what it printed."""
        options = {"env": self.environment, "timeout": 60, **options}
        done = subprocess.run(words, capture_output=True, text=True, **options)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def idle(self) -> list[str]:
        """Names of the nodes that run nothing and could."""
        told = self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False)
        return sorted(set(told.split()))  # each once for every partition

    def _configure(self) -> None:
        for name in ("state", "spool", *(f"tmp/n{n}" for n in range(1, self.size + 1))):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        nodes = range(1, self.size + 1)
        hosts = ["127.0.0.1 localhost ctl", *(f"127.0.0.{10 + n} n{n}" for n in nodes)]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        text = _CONFIGURATION.format(folder=self.folder, port=self.port)
        for n in nodes:
            text += _NODE.format(name=f"n{n}", address=10 + n, port=self.port + n)
        text += _PARTITIONS.format(size=self.size)
        (self.folder / "slurm.conf").write_text(text)
        if (_PMIX / "libpmix.so.2").exists() and not (_PMIX / "libpmix.so").exists():
            # SLURM's plugin opens a name that only the development package has
            shutil.copytree(_PMIX, self.folder / "pmix", symlinks=True)
            (self.folder / "pmix" / "libpmix.so").symlink_to("libpmix.so.2")

    def _spawn(self, name: str, words: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],  # nothing outlives a killed test run
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Return as soon as a condition holds.

    Raises:
        AssertionError: it did not within so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


def _free_ports(count: int) -> int:
    """First of so many consecutive ports that nothing listens on."""
    for first in range(17000, 19000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@contextmanager
def running(folder: Path, size: int) -> Iterator[Cluster]:
    """A cluster for as long as the block runs."""
    cluster = Cluster(folder, size, _free_ports(size + 1))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
