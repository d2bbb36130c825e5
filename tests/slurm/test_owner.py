"""One owner of a run on a real SLURM, whose nodes do not see each other's processes."""

import pytest

from megatron_ngpt.run import claim as claims
from tests.slurm.cluster import wait_for
from tests.slurm.test_failures import check_end


@pytest.mark.slow
def test_the_same_run_submitted_twice(pretraining, whole):
    """The second job is refused on another node and gives up; the first goes on undisturbed."""
    run = pretraining()
    run.submit("--nodes=2")
    run.reach(5)
    first = run.job
    run.submit("--nodes=1")
    assert run.end() == "FAILED", run
    assert run.facts()["Restarts"] == "0"
    assert "belongs to a run that goes on: process " in run.said
    assert f"on n1, job {first}, since " in run.said
    assert "give up: " in run.said
    run.job = first
    check_end(run, whole)
    assert claims.read(run.folder).released


@pytest.mark.slow
def test_another_job_takes_over_from_a_node_that_died(pretraining, whole):
    """Nothing tells that the owner is dead but its silence."""
    run = pretraining(logging={"every": 50, "owner_lease": 15})
    run.submit("--nodes=2")
    run.saves()
    run.cluster.pull_plug("n1")
    run.cluster.command("scancel", "--full", run.job)
    wait_for(run.ended, 60, f"the end of the first job\n{run}")
    run.submit("--nodes=2")
    check_end(run, whole, "rank died")
    assert "on n1" in run.said
    assert "not to be seen from here: watching for its pulse" in run.said
    assert claims.read(run.folder).claim.host == "n2"
