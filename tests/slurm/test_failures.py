"""Every kind of failure on a real cluster: the job comes back by itself and ends as if undisturbed."""

from tests.jobs import metrics


def losses(records):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records]


def test_two_nodes(pretraining, whole):
    run = pretraining()
    run.submit("--nodes=2")
    assert run.end() == "COMPLETED", run
    assert losses(metrics(run.folder)) == losses(whole)
    assert [a.reason for a in run.attempts] == ["done"]


def test_a_signal_before_the_limit(pretraining, whole):
    run = pretraining()
    run.submit("--nodes=2")
    run.reach(5)
    run.cluster.command("scancel", "--batch", "--signal=USR1", run.job)
    run.requeued(1)
    assert run.end() == "COMPLETED", run
    first, second = run.attempts
    assert (first.reason, second.reason) == ("signal", "done"), run
    assert second.resumed_at == first.step
    assert losses(metrics(run.folder)) == losses(whole)
