"""Every kind of failure on a real cluster: the job comes back by itself and ends as undisturbed."""

import os
import re
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise

import psutil
import pytest

from megatron_ngpt.run.attempts import TROUBLE
from tests.jobs import REPOSITORY, forked, metrics
from tests.slurm.cluster import wait_for
from tests.slurm.conftest import STEPS, Run
from tests.tools.commands import tool


def losses(records):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records]


def rank_pid(run: Run, rank: int) -> int:
    """Number of the process of one rank, among those of this machine."""
    for process in psutil.process_iter():
        try:
            if str(run.folder) in process.cmdline():
                environment = process.environ()
                if environment.get("SLURM_PROCID") == str(rank):
                    return process.pid
        except psutil.Error:
            continue
    raise AssertionError(f"no rank {rank}\n{run}")


def check_end(run: Run, whole, *reasons: str, names: Sequence[str] = ()) -> None:
    """The job ended well after attempts with these reasons, with the losses of an undisturbed run.

    Prints what each failure cost (`pytest -rP`).
    """
    assert run.end() == "COMPLETED", run
    known = [a.reason.replace("killed", "rank died") for a in run.attempts]  # which is told first
    assert known == [*reasons, "done"], run
    assert losses(metrics(run.folder)) == losses(whole)
    for name, (before, after) in zip(names or reasons, pairwise(run.attempts), strict=True):
        assert before.saved == after.resumed_at, run
        print(f"cost of {name}:", tool("job_status").cost(before, after))


def the_signal_before_the_limit(run: Run) -> str:
    """What `--signal=B:USR1@300` sends."""
    run.reach(5)
    run.cluster.command("scancel", "--batch", "--signal=USR1", run.job)
    return "signal"


def the_limit_itself(run: Run) -> str:
    """The ranks stand still until SLURM's own SIGCONT, SIGTERM at the limit."""
    run.reach(5)
    for rank in (0, 1):
        os.kill(rank_pid(run, rank), signal.SIGSTOP)
    run.cluster.command("scontrol", "update", f"JobId={run.job}", "EndTime=now+2")
    return "signal"


def preemption(run: Run) -> str:
    """A job of a partition with a higher PriorityTier wants all nodes."""
    run.reach(5)
    wants = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    run.cluster.command("sbatch", *wants, "--wrap=true")
    return "signal"


def a_killed_rank(run: Run) -> str:
    run.saves()
    os.kill(rank_pid(run, 1), signal.SIGKILL)
    return "rank died"


def a_killed_node(run: Run) -> str:
    run.saves()
    run.cluster.pull_plug("n2")
    wait_for(lambda: run.facts()["JobState"] != "RUNNING", 60, f"the end of the job\n{run}")
    return "rank died"


def a_killed_rank_that_slurm_forgot(run: Run) -> str:
    """Its slurmstepd is killed before it, so that srun never learns of its end."""
    run.saves()
    rank = rank_pid(run, 1)
    kill_slurmstepd(rank)
    os.kill(rank, signal.SIGKILL)
    return "rank died"


def kill_slurmstepd(rank: int) -> None:
    """Kill the parent of a rank, SLURM's process on its node; the rank lives on."""
    parent = psutil.Process(rank).parent()
    assert parent.cmdline()[0].startswith("slurmstepd"), parent.cmdline()
    parent.kill()


def a_hung_rank(run: Run) -> str:
    run.saves()
    os.kill(rank_pid(run, 1), signal.SIGSTOP)
    return "hang"


def survive(run: Run, *failures: Callable[[Run], str], moves: dict | None = None) -> list[str]:
    """One job through one failure after another, each of which it comes back from; the reasons."""
    reasons = []
    for restarts, failure in enumerate(failures, 1):
        reasons.append(failure(run))
        run.requeued(restarts, *(moves or {}).get(restarts, ()))
    return reasons


def test_asked_to_end_by_signal_limit_and_preemption(pretraining, whole):
    """On two nodes; PreemptMode is REQUEUE in the partition main and CANCEL in cheap."""
    run = pretraining()
    run.submit("--nodes=2", "--time=10", "--signal=B:USR1@60")
    moves = {2: ["TimeLimit=10"], 3: ["Partition=cheap"]}  # EndTime changed it
    failures = (the_signal_before_the_limit, the_limit_itself, preemption, preemption)
    reasons = survive(run, *failures, moves=moves)
    check_end(run, whole, *reasons, names=[failure.__name__ for failure in failures])
    assert all(a.resumed_at == b.step for b, a in pairwise(run.attempts)), "nothing was lost"
    first = run.attempts[0]
    assert (first.nodes, first.ranks, first.job) == ("n[1-2]", 2, run.job)
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step 220/220, loss .* 0:00:00 left, time limit in \d+:"
    assert re.search(line, run.said), run


def test_killed_rank_hung_rank_killed_node(pretraining, whole):
    """At last a slurmstepd is killed whose rank lives on: srun alone does not notice the end."""
    run = pretraining(train={"hang_timeout": 8})
    run.submit("--nodes=2")
    failures = (a_killed_rank, a_hung_rank, a_killed_rank_that_slurm_forgot, a_killed_node)
    reasons = survive(run, *failures)
    run.reach(5)
    kill_slurmstepd(rank_pid(run, 1))
    check_end(run, whole, *reasons, names=[failure.__name__ for failure in failures])
    assert run.facts()["NodeList"] == "n[1,3]", "another node took over"
    stack = run.folder / f"{TROUBLE}_attempt_0002" / "rank_00000.stack"
    first, *frames = stack.read_text().splitlines()
    assert re.match(r"rank 0 on n1: no progress for \d+ s after step \d+, step$", first)
    assert any("loop.py" in frame for frame in frames)


def test_what_is_refused_is_not_requeued(pretraining):
    run = pretraining(train={"global_batch": 13})
    run.submit("--nodes=2")
    assert run.end() == "FAILED", run
    assert run.facts()["Restarts"] == "0"
    assert "give up: refused" in run.said
    assert "train.global_batch = 13 is not a multiple" in run.attempts[0].detail


def test_a_job_that_never_starts_gives_up(pretraining):
    run = pretraining()
    run.site.write_text(run.site.read_text() + "container=(/no/such/container)\n")
    run.submit("--nodes=2")
    assert run.end() == "FAILED", run
    assert run.facts()["Restarts"] == "0"


def test_scancel_saves_and_does_not_requeue(pretraining, whole):
    run = pretraining()
    run.submit("--nodes=2")
    run.reach(5)
    run.cluster.command("scancel", run.job)
    assert run.end() == "CANCELLED", run
    wait_for(lambda: "signal" in [a.reason for a in run.attempts], 60, f"a save\n{run}")
    run.submit("--nodes=2")
    check_end(run, whole, "signal")
    first, second = run.attempts
    assert second.resumed_at == first.step, "nothing was lost"


def test_fewer_nodes_than_before(pretraining, whole):
    """Elastic: the one node that is left does the work of two, up to the order of summation.

    A job waits for as many nodes as it asked for; a person may ask for fewer.
    """
    run = pretraining(train={"elastic": True, "micro_batch": 6})
    run.cluster.command("scontrol", "update", "NodeName=n3", "State=DRAIN", "Reason=test")
    try:
        run.submit("--nodes=2")
        run.saves()
        assert run.facts()["NodeList"] == "n[1-2]"
        run.cluster.pull_plug("n2")
        run.waits(1)
        assert f"next start: job {run.job} at 20" in run.status()
        run.requeued(1, "NumNodes=1", "NumTasks=1")
        assert run.facts()["NodeList"] == "n1"
        assert run.end() == "COMPLETED", run
    finally:
        run.cluster.command("scontrol", "update", "NodeName=n3", "State=RESUME")
    assert [attempt.ranks for attempt in run.attempts] == [2, 1]
    ours, theirs = ([r["loss"] for r in records] for records in (metrics(run.folder), whole))
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-3, rel=0)


def test_a_chain_goes_on_and_ends_when_the_run_is_done(pretraining, whole):
    run = pretraining()
    told = run.chain(3, "--nodes=2")
    run.reach(5)
    run.cluster.command("scancel", "--batch", "--signal=USR1", run.job)
    assert run.end() == "COMPLETED", run
    assert run.facts()["Restarts"] == "0"
    first, second, third = told
    run.job = second
    check_end(run, whole, "signal")
    run.job = third
    assert run.end() == "CANCELLED", run
    assert [attempt.job for attempt in run.attempts] == [first, second]


def test_a_sweep_over_learning_rates(pretraining, toy_corpus, tmp_path):
    run = pretraining(train={"steps": 8})
    rates = ("0.01", "0.03")
    run.submit("--array=0-1", "--nodes=1", script="sweep.sbatch", more=[" ".join(rates)])
    array = run.job
    for number, rate in enumerate(rates):
        run.job = f"{array}_{number}"
        assert run.end() == "COMPLETED", run
        at = run.words.index("--optim.lr")
        alone = [*run.words[:at], *run.words[at + 2 :], "--optim.lr", rate]
        done = forked([*alone, "--logging.dir", str(tmp_path / rate)])
        assert done.code == 0, done
        ours, theirs = (metrics(f) for f in (run.folder / f"lr_{rate}", tmp_path / rate))
        assert losses(ours) == losses(theirs)


def test_the_interactive_job(pretraining):
    run = pretraining(train={"steps": 4})
    run.cluster.command(
        "bash", "examples/slurm/debug.sh", str(run.folder), *run.words,
        cwd=REPOSITORY, env=run.environment, timeout=180,
    )  # fmt: skip
    assert [attempt.reason for attempt in run.attempts] == ["done"]
