import json
import os

import pytest

from megatron_ngpt.run.attempts import add, begin
from megatron_ngpt.run.claim import Claim
from megatron_ngpt.run.owner import Owner
from tests.tools.commands import tool


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """A cluster on which the tests run has a job 12 of its own."""
    monkeypatch.setenv("PATH", "/no/such/folder")


def run_with_a_killed_attempt(folder) -> None:
    """100 steps, killed at 47 after a checkpoint at 40, done in the second attempt."""
    (folder / "checkpoints" / "step_00000040").mkdir(parents=True)
    facts = {"job": "12", "nodes": "n[1-2]", "ranks": 16}
    begin(folder, **facts, checkpoints=str(folder / "checkpoints"))
    add(folder, 1, resumed_at=0, first_step=1000.0)
    add(folder, 1, reason="killed", step=47, saved=40, ended=2000.0)
    begin(folder, **facts, checkpoints=str(folder / "checkpoints"), restarts=1)
    add(folder, 2, resumed_at=40, first_step=2012.5)
    records = [{"step": n, "step_seconds": 0.5 if n <= 50 else 0.25} for n in range(1, 101)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_run_at_a_glance(tmp_path, capsys):
    run_with_a_killed_attempt(tmp_path)
    add(tmp_path, 1, started=970.0, saves=1, save_seconds=2.0, longest_save=2.0)
    add(tmp_path, 2, started=2001.0, saves=3, save_seconds=4.0, longest_save=2.5)
    add(tmp_path, 2, reason="done", step=100, saved=100, ended=2100.0)
    slow = {"rank": 3, "cost": 0.14, "own": 0.81, "others": 0.61}
    records = [{"step": 90, "rank_seconds": {"slowest": slow}}, {"step": 100, "scales": {}}]
    (tmp_path / "vitals.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert tool("job_status").main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "rank 3 costs 14% of each step: busy for 0.81 s, others for 0.61 s" in lines
    assert "from a start to its first step: 11.5 s, longest 30.0 s (attempt 1)" in lines
    assert "4 checkpoints took 1.5 s each, the longest 2.5 s" in lines
    assert lines[1].split()[3:] == ["12", "n[1-2]", "16", "0", "to", "47", "killed"]
    assert lines[2].split()[3:] == ["12", "n[1-2]", "16", "40", "to", "100", "done"]
    assert "restart 1 -> 2: killed, 7 steps lost, 12.5 s to the next step" in lines
    assert "steps 1 to 20: 2.00 steps/s" in lines
    assert "steps 81 to 100: 4.00 steps/s" in lines
    assert "0:00:38 of " in out
    assert "went into steps that count; 7 steps were lost" in out
    assert lines[-3] == "owner: none"
    assert lines[-2] == f"newest checkpoint: step 40 in {tmp_path}/checkpoints, 0:00:00 old"
    assert lines[-1] == "the run is done"


def test_a_run_that_still_works_is_not_called_dead(tmp_path, capsys):
    run_with_a_killed_attempt(tmp_path)
    before = (tmp_path / "attempts.jsonl").read_bytes()
    with Owner({"logging.dir": tmp_path}, Claim(job="12")):
        assert tool("job_status").main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"owner: process {os.getpid()} on " in out
    assert ", job 12, since , which lives" in out
    assert "40 to 100      running, or killed" in out
    assert "last sign of life 0 s ago" in out
    assert (tmp_path / "attempts.jsonl").read_bytes() == before, "looking changes nothing"


@pytest.mark.parametrize(
    ("told", "code", "line"),
    [
        (
            "PENDING|2026-11-25T21:10:00|BeginTime|1-00:00:00",
            0,
            "next start: job 12 at 2026-11-25T21:10:00 (BeginTime), goes on from step 40; "
            "1 attempts in a row without a new checkpoint so far",
        ),
        ("PENDING|N/A|Resources|1:00", 0, "next start: job 12 (Resources), goes on from step 40; "),
        ("RUNNING|2026-11-25T20:00:00|None|3:04:05", 0, "job 12 is RUNNING, 3:04:05 before its "),
        ("", 0, "job 12 is no longer in the queue; submitted again, it goes on from step 40"),
        ("slurm_load_jobs error: Invalid job id specified", 1, "job 12 is no longer in the queue"),
        ("slurm_load_jobs error: Unable to contact", 1, "last sign of life 0 s ago"),
    ],
)
def test_the_queue_tells_when_it_goes_on(tmp_path, capsys, monkeypatch, told, code, line):
    run_with_a_killed_attempt(tmp_path)
    stream = 2 if code else 1
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\nprintf %s '{told}' >&{stream}\nexit {code}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert tool("job_status").main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)


def test_decisions_are_exit_codes(tmp_path, capsys):
    ask = [str(tmp_path), "--decide", "--job", "12", "--tries", "1"]
    run_with_a_killed_attempt(tmp_path)
    add(tmp_path, 2, reason="signal", step=80, saved=80)
    main = tool("job_status").main
    assert main([*ask, "--restarts", "1"]) == 0
    assert capsys.readouterr().out.startswith("requeue: attempt 2 ended by signal after step 80")
    assert main([*ask, "--restarts", "2", "--exit-code", "1"]) == 11
    assert "give up: 1 attempts in a row without a new checkpoint" in capsys.readouterr().out
    begin(tmp_path, job="12", restarts=3)
    add(tmp_path, 4, reason="done", step=100, saved=100)
    assert main([*ask, "--restarts", "3"]) == 10
    assert capsys.readouterr().out == "done: done after step 100\n"


def test_no_run(tmp_path, capsys):
    assert tool("job_status").main([str(tmp_path)]) == 2
    assert "no run has started there" in capsys.readouterr().err
