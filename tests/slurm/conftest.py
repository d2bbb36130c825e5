"""One cluster, one uninterrupted run to compare with, and jobs from the shipped scripts."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from megatron_ngpt.run.attempts import Attempt, read_attempts, read_metrics
from megatron_ngpt.run.checkpoints import checkpoints, step_of
from tests.distributed import run
from tests.jobs import REPOSITORY, metrics, train_on, words
from tests.slurm.cluster import Cluster, missing, running, wait_for

STEPS = 220
SECTIONS = {"train": {"steps": STEPS}, "checkpoint": {"every": 10}, "logging": {"every": 50}}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SITE = """
export PATH={path} PYTHONPATH=$PWD OMP_NUM_THREADS=1
container=(env INSIDE=1) srun_options=() debug_options=(--ntasks-per-node=1)
mpi=({mpi}) tries=3 srun_patience=6
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Three nodes."""
    if why := missing():
        pytest.skip(f"no SLURM: {why}")
    with running(tmp_path_factory.mktemp("slurm"), size=3) as started:
        yield started


@pytest.fixture(autouse=True)
def quiet(request) -> Iterator[None]:
    """No test leaves jobs behind, or nodes that are down."""
    yield
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        cluster.command("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        cluster.command("scancel", "--user=root", check=False)
        for node in (f"n{n}" for n in range(1, cluster.size + 1)):
            if node not in cluster.processes:
                cluster.repair(node)
        wait_for(lambda: len(cluster.idle()) == cluster.size, 60, "idle nodes")


@pytest.fixture(scope="session")
def whole(toy_corpus, tmp_path_factory) -> list[dict[str, float]]:
    """Metrics of the uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    run(2, _train, words(toy_corpus, folder, **SECTIONS))
    return metrics(folder)


def _train(mesh, arguments: list[str]) -> None:
    train_on(mesh, arguments)


@dataclass
class Run:
    """A run's folder, and the jobs that work on it."""

    cluster: Cluster
    folder: Path
    words: list[str]
    """pretrain_ngpt.py's, less the folder."""
    site: Path
    job: str = ""

    def submit(
        self,
        *options: str,
        script: str = "pretrain.sbatch",
        more: Sequence[str] = (),
        bare: bool = False,
    ) -> None:
        """sbatch of a shipped script; ``bare`` without the run's folder."""
        folder = [] if bare else [str(self.folder)]
        job = [*self._options, *options, f"examples/slurm/{script}", *folder, *more, *self.words]
        self.job = self._here("sbatch", "--parsable", *job)

    def chain(self, count: int, *options: str) -> list[str]:
        """Numbers of the jobs of chain.sh, of which the first is the run's now."""
        script = ["examples/slurm/pretrain.sbatch", str(self.folder)]
        words = [str(count), *self._options, *options, *script, *self.words]
        told = self._here("examples/slurm/chain.sh", *words).split()
        self.job = told[0]
        return told

    @property
    def _options(self) -> list[str]:
        output = f"--output={self.folder.parent}/{self.folder.name}-%j.txt"
        return ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", output]

    def _here(self, *words: str) -> str:
        return self.cluster.command(*words, cwd=REPOSITORY, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        return {**self.cluster.environment, "NGPT_SITE": str(self.site), "USER": "root"}

    def facts(self) -> dict[str, str]:
        """What scontrol knows of the job."""
        told = self.cluster.command("scontrol", "-o", "show", "job", self.job)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def steps(self) -> int:
        """How many the attempt that runs has done."""
        now = self.attempts[-1] if self.attempts else Attempt(0)
        if now.reason or not now.first_step or now.restarts != int(self.facts()["Restarts"]):
            return 0
        return int(read_metrics(self.folder)[-1]["step"]) - now.resumed_at

    def reach(self, steps: int) -> None:
        """Wait until the attempt that runs has done so many."""
        done = lambda: self.steps() >= steps  # noqa: E731
        wait_for(lambda: done() or self.ended(), 180, f"{steps} steps\n{self}")
        assert done(), self

    def saved(self) -> int:
        """Step of the newest checkpoint, 0 where there is none."""
        found = checkpoints(self.folder / "checkpoints")
        return step_of(found[0]) if found else 0

    def saves(self) -> None:
        """Wait until the attempt that runs has a checkpoint of its own, written behind its back."""
        self.reach(1)
        new = lambda: self.saved() > self.attempts[-1].resumed_at  # noqa: E731
        wait_for(lambda: new() or self.ended(), 180, f"a checkpoint\n{self}")
        assert new(), self

    def requeued(self, restarts: int, *changes: str) -> None:
        """Wait until the job was requeued so often; spare it SLURM's pause of two minutes."""
        self.waits(restarts)
        # nodes refuse a job in the second in which it ended, and its first step while the old
        # attempt's is still being cleaned up; outside of tests it waits two minutes
        time.sleep(2)
        wait_for(lambda: not self._stepds(), 60, f"the old attempt's processes\n{self}")
        words = (f"JobId={self.job}", *changes, "StartTime=now")
        self.cluster.command("scontrol", "update", *words)
        self._becomes("RUNNING", restarts)

    def waits(self, restarts: int) -> None:
        """Wait until the job was requeued so often."""
        self._becomes("PENDING", restarts)

    def _becomes(self, state: str, restarts: int) -> None:
        def now() -> bool:
            facts = self.facts()
            return facts["JobState"] == state and int(facts["Restarts"]) == restarts

        wait_for(lambda: now() or self.ended(), 120, f"restart {restarts}, {state}\n{self}")
        assert int(self.facts()["Restarts"]) == restarts, self

    def status(self) -> str:
        """What tools/job_status.py shows."""
        return self._here(sys.executable, "tools/job_status.py", str(self.folder))

    def _stepds(self) -> list[str]:
        """SLURM's own processes that look after this job's steps, on all nodes."""
        processes = psutil.process_iter(["cmdline"])
        names = (" ".join(process.info["cmdline"] or ()) for process in processes)
        return [name for name in names if name.startswith(f"slurmstepd: [{self.job}.")]

    def end(self) -> str:
        """Wait for the end of the job; its state."""
        wait_for(self.ended, 180, f"the end\n{self}")
        return self.facts()["JobState"]

    def ended(self) -> bool:
        """Whether the job is over."""
        return self.facts()["JobState"] in ENDED

    @property
    def attempts(self) -> list[Attempt]:
        return read_attempts(self.folder)

    def __str__(self) -> str:
        said = "".join(path.read_text()[-6000:] for path in self._outputs())
        return f"{self.facts()}\n{self.attempts}\n{said}"

    def _outputs(self) -> list[Path]:
        return sorted(self.folder.parent.glob(f"{self.folder.name}-*.txt"))

    @property
    def said(self) -> str:
        return "".join(path.read_text() for path in self._outputs())


@pytest.fixture
def pretraining(cluster, toy_corpus, tmp_path) -> Callable[..., Run]:
    """A run on the cluster, not yet submitted, with these settings."""
    site = tmp_path / "env.sh"

    def prepare(mpi: str = "", **sections: dict) -> Run:
        python = Path(shutil.which("python")).parent
        site.write_text(SITE.format(path=f"{python}:$PATH", mpi=mpi))
        folder = tmp_path / "run"
        merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})}
                  for name in {*SECTIONS, *sections}}  # fmt: skip
        arguments = words(toy_corpus, folder, **merged)
        at = arguments.index("--logging.dir")
        return Run(cluster, folder, arguments[:at] + arguments[at + 2 :], site)

    return prepare
