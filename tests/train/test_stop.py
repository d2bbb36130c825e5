"""Runs that are asked to end: saved at the next boundary, and nothing of the result changes."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from torch._dynamo import callback

from megatron_ngpt.config import (
    Config,
    TrainConfig,
    check,
    check_batch,
    fit_micro_batch,
    seconds_of,
)
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.run.attempts import AttemptRecord, read_attempts
from megatron_ngpt.run.checkpoints import checkpoints, read_progress
from megatron_ngpt.train.stop import Stop
from megatron_ngpt.train.watch import Watch
from tests import jobs
from tests.distributed import run
from tests.jobs import forked, metrics, train_on, words

SECTIONS = {
    "eval": {"every": 2, "steps": 3},
    "checkpoint": {"every": 3, "keep": 0},
    "data": {"valid_fraction": 0.3},
}
VARYING = ("tokens_per_second", "step_seconds")


class AskedAt(Stop):
    """One rank is asked at its n-th boundary, the others never."""

    def __init__(self, boundary: int) -> None:
        super().__init__()
        self.left = boundary

    def _mine(self) -> int:
        self.left -= 1
        return 2 if self.left == 0 else 0


def _watch(mesh, folder: Path, boundary: int, restarts: int) -> Watch:
    stop = AskedAt(boundary) if mesh.rank == 1 else Stop()
    facts = {"restarts": restarts, "checkpoints": str(folder / "checkpoints")}
    return Watch(stop, attempt=AttemptRecord(folder, mesh.rank, **facts))


def _stopped_again_and_again(mesh, arguments: list[str], folder: Path, boundaries: list[int]):
    for number, boundary in enumerate([*boundaries, 10_000]):
        train_on(mesh, arguments, _watch(mesh, folder, boundary, number))


def same_but_for_time(ours: list[dict], theirs: list[dict]) -> bool:
    def steady(records: list[dict]) -> list[dict]:
        return [{k: v for k, v in r.items() if k not in VARYING} for r in records]

    return steady(ours) == steady(theirs)


# boundaries of 8 steps: 1 before each step, 3 in the evaluation after each second one
@pytest.mark.parametrize(
    "boundaries",
    [
        pytest.param([1, 2, 1, 1, 3], id="before steps", marks=pytest.mark.slow),
        pytest.param([3, 4], id="in evaluations", marks=pytest.mark.slow),
        pytest.param([5, 3, 1, 2, 2, 2], id="both"),
    ],
)
def test_a_run_asked_to_end_is_saved_and_goes_on_to_the_bit(toy_corpus, tmp_path, boundaries):
    ours, whole = tmp_path / "ours", tmp_path / "whole"
    run(2, _stopped_again_and_again, words(toy_corpus, ours, **SECTIONS), ours, boundaries)
    run(2, _uninterrupted, words(toy_corpus, whole, **SECTIONS))
    assert same_but_for_time(metrics(ours), metrics(whole))
    attempts = read_attempts(ours)
    assert [a.reason for a in attempts] == ["signal"] * len(boundaries) + ["done"]
    for before, after in itertools.pairwise(attempts):
        assert after.resumed_at == before.step == before.saved, "nothing is lost"
    assert all((a.first_step > a.started) == (a.step > a.resumed_at) for a in attempts)


def _uninterrupted(mesh, arguments: list[str]) -> None:
    train_on(mesh, arguments)


def test_an_evaluation_cut_short_is_owed_until_it_is_done(toy_corpus, tmp_path):
    run(2, _stopped_in_evaluation, words(toy_corpus, tmp_path, **SECTIONS))
    newest = checkpoints(tmp_path / "checkpoints")[0]
    progress = read_progress(newest)
    assert progress.record["step"] == progress.step == 2
    assert [record["step"] for record in metrics(tmp_path)] == [1]


def _stopped_in_evaluation(mesh, arguments: list[str]) -> None:
    train_on(mesh, arguments, Watch(AskedAt(4) if mesh.rank else Stop()))


def _asked_while_corpora_open(mesh, arguments: list[str], folder: Path) -> None:
    """Rank 1 alone gets SIGUSR1, in the middle of open_corpora."""

    def opened(*args, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        return open_corpora(*args, **options)

    if mesh.rank == 1:
        jobs.open_corpora = opened
    _listening(mesh, arguments, folder, 0)


def _listening(mesh, arguments: list[str], folder: Path, restarts: int) -> None:
    facts = {"restarts": restarts, "checkpoints": str(folder / "checkpoints")}
    with Stop() as stop, AttemptRecord(folder, mesh.rank, **facts) as attempt:
        train_on(mesh, arguments, Watch(stop, attempt=attempt))


def _asked_while_it_compiles(mesh, arguments: list[str], folder: Path) -> None:
    """Rank 1 alone gets SIGUSR1, and so do all processes that its compiler has started."""
    if mesh.rank == 1:
        for register in (callback.on_compile_start, callback.on_compile_end):
            register(_signal_family)
    _listening(mesh, arguments, folder, 0)


def _signal_family(*_) -> None:
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR1)


def check_asked_once(asked, corpus, folder, step, **sections):
    """Both ranks end after so many steps although one was asked; the next start loses nothing."""
    ours, whole = folder / "ours", folder / "whole"
    run(2, asked, words(corpus, ours, **sections), ours)
    assert [(a.reason, a.step, a.saved) for a in read_attempts(ours)] == [("signal", step, step)]
    run(2, _listening, words(corpus, ours, **sections), ours, 1)
    run(2, _uninterrupted, words(corpus, whole, **sections))
    assert [a.reason for a in read_attempts(ours)] == ["signal", "done"]
    assert same_but_for_time(metrics(ours), metrics(whole))


def test_one_rank_asked_while_its_data_opens(toy_corpus, tmp_path):
    check_asked_once(_asked_while_corpora_open, toy_corpus, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
def test_one_rank_asked_while_it_compiles(toy_corpus, tmp_path):
    """The first step, which compiles, is done and saved."""
    train = {"compile": True, "steps": 4}
    check_asked_once(_asked_while_it_compiles, toy_corpus, tmp_path, 1, train=train)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_the_process_well(toy_corpus, tmp_path, number):
    """Sent while it starts, so that it is still asked when the first step would begin."""
    code = (
        "import os, pretrain_ngpt\n"
        "from megatron_ngpt.train.stop import Stop\n"
        "listen = Stop.listen\n"
        f"Stop.listen = lambda self: (listen(self), os.kill(os.getpid(), {int(number)}))\n"
        "pretrain_ngpt.finish(pretrain_ngpt.run())\n"
    )
    arguments = words(toy_corpus, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done
    assert "ends after step 0: signal, saved" in done.stdout
    assert [(a.reason, a.step) for a in read_attempts(tmp_path)] == [("signal", 0)]


def _child_of_a_listening_process() -> int:
    """Exit code of a process started by one that listens, after SIGUSR1 to both."""
    code = "import time; print(flush=True); time.sleep(0.5)"
    asked = Stop()
    asked.listen()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        child.stdout.read(1)
        child.send_signal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert asked._mine()
    return child.returncode


def test_processes_of_the_compiler_survive_the_signal():
    old = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGTERM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        assert _child_of_a_listening_process() == 0
    finally:
        while signal.sigpending():
            signal.sigwait(signal.sigpending())
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for n, handler in old.items():
            signal.signal(n, handler)


def test_exit_after(toy_corpus, tmp_path):
    long = {"steps": 100_000, "exit_after": "1s"}
    done = forked(words(toy_corpus, tmp_path, train=long, logging={"every": 1}))
    assert done.code == 0, done
    attempt = read_attempts(tmp_path)[0]
    assert attempt.reason == "walltime"
    assert 0 < attempt.step == attempt.saved < 100_000
    assert f"ends after step {attempt.step}: walltime, saved" in done.out
    assert "left, time limit in 0:00:0" in done.out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13800), ("90", 5400), ("90s", 90), ("1d1s", 86401), ("", float("inf")), ("0", 0)],
)
def test_lengths_of_time(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["3.5h", "h", "10 m", "50m3h", "3:50:00"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ValueError, match=r"train.exit_after = .* is no length of time"):
        check(Config(train=TrainConfig(exit_after=text)))


def sized(batch: int, micro: int, elastic: bool = True) -> Config:
    return Config(train=TrainConfig(global_batch=batch, micro_batch=micro, elastic=elastic))


@pytest.mark.parametrize(
    ("dp", "fits"), [(1, 4), (2, 4), (3, 4), (4, 3), (6, 4), (8, 3), (12, 2), (24, 1)]
)
def test_elastic_runs_take_the_largest_micro_batch_that_fits(dp, fits):
    config = fit_micro_batch(sized(24, 4), dp)
    assert config.train.micro_batch == fits
    assert config.train.global_batch == 24
    check_batch(config, dp)


def test_ranks_that_cannot_share_the_batch_are_refused_also_when_elastic():
    with pytest.raises(ValueError, match=r"global_batch = 24 cannot be shared by dp = 5.* dp = 4"):
        check_batch(fit_micro_batch(sized(24, 4), 5), 5)
    rigid = sized(24, 4, elastic=False)
    assert fit_micro_batch(rigid, 4) is rigid
