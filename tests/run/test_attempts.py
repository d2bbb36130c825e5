import json
import os
from pathlib import Path

import pytest

from megatron_ngpt.run import attempts
from megatron_ngpt.run.attempts import (
    TROUBLE,
    AttemptRecord,
    add,
    begin,
    close_dead,
    read_attempts,
)
from megatron_ngpt.run.claim import Claim
from megatron_ngpt.run.owner import Owner
from megatron_ngpt.run.requeue import decide

JOB = "17"


def save(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)


def start(run_dir: Path, restarts: int = 0, job: str = JOB) -> int:
    place = str(run_dir / "checkpoints")
    return begin(run_dir, job=job, restarts=restarts, ranks=2, checkpoints=place)


def train_to(run_dir: Path, step: int) -> None:
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": step, "step_seconds": 0.5}) + "\n")


def leave(run_dir: Path, name: str, first_line: str) -> None:
    (run_dir / TROUBLE).mkdir(exist_ok=True)
    (run_dir / TROUBLE / name).write_text(f"{first_line}\n\nmore\n")


def asked(run_dir: Path, restarts: int = 0, exit_code: int = 0, tries: int = 3, job: str = JOB):
    decision = decide(run_dir, job, restarts, exit_code, tries)
    return decision.action, decision.why


@pytest.mark.parametrize(
    ("name", "first_line", "reason"),
    [
        ("", "", "killed"),
        ("rank_00001.stack", "rank 1 on n2: no progress for 60 s after step 7, step", "hang"),
        ("rank_00001.error", "rank 1: SaveFailed: no space", "error"),
        ("rank_00000.error", "rank 0: ValueError: data.train = x: no such corpus", "refused"),
        ("rank_00000.error", "rank 0: RuntimeError: Connection closed by peer [::1]", "rank died"),
    ],
)
def test_the_next_start_finds_out_how_the_one_before_ended(tmp_path, name, first_line, reason):
    start(tmp_path)
    add(tmp_path, 1, resumed_at=4)
    train_to(tmp_path, 7)
    save(tmp_path, 6)
    if name:
        leave(tmp_path, name, first_line)
    assert start(tmp_path, 1) == 2
    dead, running = read_attempts(tmp_path)
    assert (dead.reason, dead.step, dead.saved, dead.resumed_at) == (reason, 7, 6, 4)
    assert dead.detail == first_line
    assert dead.ended == pytest.approx((tmp_path / "metrics.jsonl").stat().st_mtime)
    assert (running.number, running.reason, running.restarts) == (2, "", 1)
    assert not (tmp_path / TROUBLE).exists()
    assert (tmp_path / f"{TROUBLE}_attempt_0001").exists() == bool(name)


def test_the_cause_is_the_error_of_the_rank_that_failed_not_of_those_that_lost_it(tmp_path):
    start(tmp_path)
    leave(tmp_path, "rank_00000.error", "rank 0: RuntimeError: Connection reset by peer")
    leave(tmp_path, "rank_00001.error", "rank 1: KeyError: 'x'")
    os.utime(tmp_path / TROUBLE / "rank_00000.error", (1, 1))
    close_dead(tmp_path)
    assert read_attempts(tmp_path)[0].detail == "rank 1: KeyError: 'x'"


def test_half_a_line_is_passed_over_and_not_written_on(tmp_path):
    start(tmp_path)
    with (tmp_path / "attempts.jsonl").open("a") as stream:
        stream.write('{"number": 1, "rea')
    add(tmp_path, 1, reason="signal", step=3)
    assert [(a.reason, a.step) for a in read_attempts(tmp_path)] == [("signal", 3)]


def test_an_error_is_left_for_the_record(tmp_path):
    with (
        pytest.raises(KeyError),
        AttemptRecord(tmp_path, rank=3),
    ):
        raise KeyError("no\nsuch")
    first = (tmp_path / TROUBLE / "rank_00003.error").read_text().splitlines()[0]
    assert first == r"rank 3: KeyError: 'no\nsuch'"
    assert not read_attempts(tmp_path), "rank 0 alone writes there"


def test_saved_runs_are_requeued_and_done_ones_are_not(tmp_path):
    number = start(tmp_path)
    add(tmp_path, number, step=9, saved=9, reason="signal")
    assert asked(tmp_path) == (
        "requeue",
        "attempt 1 ended by signal after step 9; goes on from step 9",
    )
    add(tmp_path, start(tmp_path, 1), step=20, saved=20, reason="done")
    assert asked(tmp_path, restarts=1) == ("done", "done after step 20")


def test_what_was_refused_is_not_tried_again(tmp_path):
    start(tmp_path)
    leave(tmp_path, "rank_00000.error", "rank 0: ValueError: train.steps = -1")
    action, why = asked(tmp_path)
    assert action == "give up"
    assert "train.steps = -1" in why


@pytest.mark.parametrize("started", [True, False])
def test_failing_again_and_again_without_a_checkpoint_gives_up(tmp_path, started):
    save(tmp_path, 5)
    number = start(tmp_path)
    add(tmp_path, number, step=5, saved=5, reason="signal")
    told = []
    for restarts in (1, 2, 3):
        if started:
            start(tmp_path, restarts)
        told.append(asked(tmp_path, restarts=restarts, exit_code=7))
    assert [action for action, _ in told] == ["requeue", "requeue", "give up"]
    assert told[-1][1].startswith("3 attempts in a row without a new checkpoint")
    assert ("exit code 7" in told[-1][1]) == (not started)
    assert asked(tmp_path, restarts=3, tries=4)[0] == "requeue"


def test_a_new_checkpoint_or_a_new_job_starts_counting_anew(tmp_path):
    for restarts in range(6):
        start(tmp_path, restarts)
        if restarts == 3:
            save(tmp_path, 8)
        action, _ = asked(tmp_path, restarts=restarts)
        assert action == ("give up" if restarts == 2 else "requeue")
    start(tmp_path, 6)
    assert asked(tmp_path, restarts=6)[0] == "give up"
    start(tmp_path, 0, job="18")
    assert asked(tmp_path, job="18")[0] == "requeue"


def test_the_job_of_a_second_start_gives_up_and_touches_nothing_of_the_first(tmp_path):
    with Owner({"logging.dir": tmp_path}, Claim(job="17", started="today")):
        start(tmp_path)
        before = (tmp_path / "attempts.jsonl").read_bytes()
        action, why = asked(tmp_path, job="18", exit_code=2)
        assert action == "give up"
        assert f"belongs to a run that goes on: process {os.getpid()} on " in why
        assert (tmp_path / "attempts.jsonl").read_bytes() == before
        assert asked(tmp_path)[0] == "requeue", "its own job has just ended"


def test_a_full_disk_delays_what_became_known(tmp_path, monkeypatch, capfd):
    record = AttemptRecord(tmp_path, rank=0)
    with monkeypatch.context() as patched:
        patched.setattr(attempts, "add", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        record.note(resumed_at=3)
        record.note(first_step=1.0)
    record.note(saved=4)
    (attempt,) = read_attempts(tmp_path)
    assert (attempt.resumed_at, attempt.first_step, attempt.saved) == (3, 1.0, 4)
    assert capfd.readouterr().err.count("full; the run goes on") == 1
