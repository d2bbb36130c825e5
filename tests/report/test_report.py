"""What a report says of made-up runs, without a browser."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import Story, loss_at, write_run
from megatron_ngpt.report.compare import compared
from megatron_ngpt.report.events import events, time_lost
from megatron_ngpt.report.reading import read_run
from megatron_ngpt.report.verdict import verdict
from megatron_ngpt.report.write import names, write

TOOL = Path(__file__).parents[2] / "tools" / "report.py"
SHORT = {"vitals_every": 0}


def texts(folder: Path, **story: object) -> list[str]:
    run = read_run(write_run(folder, Story(**{**SHORT, **story})))
    return [f"{found.level}: {found.text}" for found in verdict(run)]


@pytest.mark.parametrize(
    ("story", "first"),
    [
        ({}, "good: Healthy"),
        ({"spike": (500, 2.0)}, "warn: Spike at step 500: loss 4."),
        ({"slower": (600, 1.5)}, "warn: Slower since step 6"),
        ({"corpus": 2_048_000, "reason": "done"}, "good: Healthy"),
        ({"reason": "hang"}, "bad: Not running: ended by hang at step 1,000"),
        ({"reason": ""}, "bad: "),
    ],
)
def test_the_first_sentence_says_what_is_wrong(tmp_path, story, first):
    assert texts(tmp_path, **story)[0].startswith(first)


def test_a_healthy_run_is_called_nothing_else(tmp_path):
    """Over many seeds: noise alone is no spike and no slowness."""
    for seed in range(20):
        found = texts(tmp_path / str(seed), seed=seed)
        assert [text.split(":")[0] for text in found] == ["good", "note"]


def test_repeated_data_are_told_with_the_step(tmp_path):
    found = texts(tmp_path, corpus=2_048_000)
    assert any("Data repeated since step 501" in text and "2.0 times" in text for text in found)


def test_a_spike_that_stays_is_worse_than_one_that_goes(tmp_path):
    path = write_run(tmp_path, Story(**SHORT))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines[700:]:
        line["loss"] += 3
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = verdict(read_run(path))[0]
    assert first.level == "bad"
    assert first.step == 701
    assert "not come back" in first.text
    lines[800]["loss"] = float("nan")
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any("not a number at step 801" in f.text for f in verdict(read_run(path)))


def test_events_and_the_time_that_they_cost(tmp_path):
    changed = [{"parallel.tp": 2}, {"optim.lr": 0.5}]
    story = Story(
        **SHORT,
        killed=(300, 600),
        settings=changed,
        faults=[{"step": 7, "problem": "nan", "action": "skip"}],
    )
    run = read_run(write_run(tmp_path, story))
    found = [(event.step, event.kind) for event in events(run)]
    assert [kind for step, kind in found if step == 200] == ["restart", "topology", "settings"]
    assert (7.0, "fault") in found
    assert any("optim.lr: 0.001 → 0.5" in event.text for event in events(run))
    lost = dict(time_lost(run))
    assert lost["steps done again after a kill"] == pytest.approx(200, rel=0.1)
    assert lost["waiting after a kill"] == pytest.approx(240, rel=1e-6)
    assert lost["starting up"] == pytest.approx(90, rel=1e-6)
    whole = run.attempts[-1].ended - run.attempts[0].started
    assert sum(lost.values()) == pytest.approx(whole, rel=0.02)


def test_the_factor_is_that_with_which_the_runs_were_made(tmp_path):
    first = read_run(write_run(tmp_path / "first", Story(**SHORT)))
    other = read_run(write_run(tmp_path / "other", Story(**SHORT, faster=2.0)))
    found = compared(first, other)
    assert len(found) >= 4
    assert np.allclose([f.factor for f in found], 2.0, rtol=0.02)
    assert found[-1].loss == pytest.approx(float(loss_at(found[-1].tokens)) + 0.05)


def test_hours_go_on_over_restarts(tmp_path):
    run = read_run(write_run(tmp_path, Story(**SHORT, killed=(300,))))
    assert (np.diff(run.hours) >= 0).all()
    ended = (run.attempts[-1].ended - run.attempts[0].started) / 3600
    assert run.hours[-1] == pytest.approx(ended, rel=0.02)


def test_torn_and_strange_lines_are_passed_over(tmp_path):
    path = write_run(tmp_path, Story(steps=50, layers=2))
    for name in ("metrics.jsonl", "vitals.jsonl", "ledger.jsonl", "attempts.jsonl"):
        with (path / name).open("a") as stream:
            stream.write('[1]\n{"step": 51, "lo')
    assert read_run(path).steps == 50


def test_the_command_writes_one_file_that_loads_nothing_and_its_pictures(tmp_path):
    pytest.importorskip("plotly")
    run = write_run(tmp_path / "a<b", Story(steps=300, layers=2, spectra_every=100))
    done = subprocess.run([sys.executable, str(TOOL), str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Healthy" in done.stdout
    page = (run / "report" / "report.html").read_text()
    assert "a&lt;b" in page
    assert "<script src" not in page
    assert "@import" not in page
    for name in ("loss", "speed", "scales", "motion", "spectra"):
        assert (run / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    done = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no run has started there" in done.stderr


def test_samples_stay_with_the_report(tmp_path):
    run = write_run(tmp_path / "run", Story(steps=30, **SHORT))
    out = tmp_path / "out"
    out.mkdir()
    sample = {"run": "run", "step": 30, "prompt": "It was", "text": "It was</script> a dark night"}
    (out / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    write([run], out, pictures=False)
    page = (out / "report.html").read_text()
    assert "<b>It was</b>&lt;/script&gt; a dark night" in page


def test_names_tell_runs_apart():
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/c")]
    assert names(paths) == ["a/run", "b/run", "x/c"]


def test_a_watched_run_is_written_again_until_one_is_asked_to_end(tmp_path):
    run = write_run(tmp_path, Story(steps=100, **SHORT))
    words = [sys.executable, str(TOOL), str(run), "--watch", "--every", "0.1", "--no-pictures"]
    page = run / "report" / "report.html"
    job = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        _wait_for(lambda: page.is_file() and "0.123456" not in page.read_text(), job)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        last = {**json.loads(lines[-1]), "step": 101, "loss": 0.123456}
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(last) + "\n")
        _wait_for(lambda: "0.123456" in page.read_text() or "0.1235" in page.read_text(), job)
        job.send_signal(signal.SIGINT)
        told, complaints = job.communicate(timeout=60)
    finally:
        job.kill()
        job.wait()
    assert (job.returncode, complaints) == (0, "")
    assert told.count("written: ") >= 2


def _wait_for(happened, job) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
