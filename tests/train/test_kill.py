"""Kill -9 of all ranks at any moment: the next start resumes, and nothing of the result changes."""

import gc
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import pretrain_ngpt
from megatron_ngpt.engine.checkpoint import checkpointer, files
from megatron_ngpt.mesh import launch
from tests.distributed import SLOW_IMPORTS, run
from tests.jobs import command, kill_family, metrics, started, stored_state, train_on, words

STEPS, RANKS = 320, 2  # more than 24 kills leave time for
SECTIONS = {"train": {"steps": STEPS}, "checkpoint": {"every": 2, "keep": 2}}


class Attempt:
    """A start of the run: both ranks forked, each as if by ``python pretrain_ngpt.py``."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(SLOW_IMPORTS)
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        jobs = [(arguments, rank, self.store.port, str(output)) for rank in range(RANKS)]
        self.ranks = [context.Process(target=_rank, args=job) for job in jobs]
        for rank in self.ranks:
            rank.start()

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.join()

    def running(self) -> bool:
        return any(rank.is_alive() for rank in self.ranks)


def _rank(arguments: list[str], rank: int, port: int, output: str) -> None:
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    gc.freeze()
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    # as on a slow disk, so that kills hit the middle of a save and the moment before its rename
    files.write = _after(0.05, files.write)
    checkpointer.publish = _after(0.1, checkpointer.publish)
    sys.argv = ["pretrain_ngpt.py", *arguments]
    launch.finish(pretrain_ngpt.run())


def _after(seconds: float, function: Callable) -> Callable:
    def later(*args):
        time.sleep(seconds)
        return function(*args)

    return later


def writing(folder: Path) -> bool:
    """Whether files of a checkpoint are being written."""
    return any(not (new / "index.json").exists() for new in folder.glob(".writing_step_*"))


def unnamed(folder: Path) -> bool:
    """Whether a checkpoint is whole and waits for its name."""
    return any((new / "index.json").exists() for new in folder.glob(".writing_step_*"))


def training(folder: Path) -> bool:
    """Whether steps were taken and no save is under way."""
    return not any(folder.glob(".writing_step_*")) and any(folder.glob("step_*"))


MOMENTS = {"start": lambda _: True, "training": training, "writing": writing, "unnamed": unnamed}


def _kill_at(attempt: Attempt, folder: Path, moment: str, chance: random.Random) -> str:
    """Kill a start of the run; what was going on then, or "" if it had ended."""
    began, reached = time.monotonic(), MOMENTS[moment]
    patience = chance.uniform(0, 0.8) if moment == "start" else chance.uniform(0.7, 2)
    while attempt.running() and time.monotonic() < began + 60:
        if time.monotonic() > began + patience and reached(folder):
            found = [name for name in ("writing", "unnamed", "training") if MOMENTS[name](folder)]
            attempt.kill()
            return moment if moment == "start" else (found or ["between"])[0]
        time.sleep(0.002)
    return ""


def _uninterrupted(mesh, arguments: list[str]) -> None:
    train_on(mesh, arguments)


def _check_like_uninterrupted(corpus: str, folder: Path, other: Path) -> None:
    run(RANKS, _uninterrupted, words(corpus, other, **SECTIONS))
    ours, theirs = metrics(folder), metrics(other)
    assert [record["step"] for record in ours] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "lr", "tokens"):
        assert [record[name] for record in ours] == [record[name] for record in theirs]
    last = Path("checkpoints", f"step_{STEPS:08d}")
    one, another = stored_state(folder / last), stored_state(other / last)
    for name in one:
        assert name.startswith("rng/") or torch.equal(one[name], another[name]), name


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_same_end(toy_corpus, tmp_path):
    folder, output = tmp_path / "killed", tmp_path / "output.txt"
    arguments = words(toy_corpus, folder, **SECTIONS)
    chance, kills = random.Random(2024), Counter()
    for number in range(24):
        moment = list(MOMENTS)[number % len(MOMENTS)]
        attempt = Attempt(arguments, output)
        kills[_kill_at(attempt, folder / "checkpoints", moment, chance)] += 1
        assert not kills[""], f"kill {number} missed\n{kills}\n{output.read_text()}"
    assert sum(kills.values()) >= 20, kills
    assert all(kills[moment] >= 3 for moment in MOMENTS), kills
    last = Attempt(arguments, output)
    for rank in last.ranks:
        rank.join(120)
    said = output.read_text()
    assert all(rank.exitcode == 0 for rank in last.ranks), said
    assert "damaged" not in said
    assert said.count("resumed at step ") >= 12, said
    _check_like_uninterrupted(toy_corpus, folder, tmp_path / "whole")


@pytest.mark.slow
def test_killed_under_torchrun(toy_corpus, tmp_path):
    """The same with the launcher killed too, and at moments of the clock alone."""
    folder = tmp_path / "killed"
    arguments = command(words(toy_corpus, folder, **SECTIONS), processes=RANKS)
    chance = random.Random(7)
    for _ in range(4):
        with started(arguments) as process:
            while not (folder / "checkpoints").exists():
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 4))
            kill_family(process)
    with started(arguments) as process:
        assert process.wait(120) == 0
    _check_like_uninterrupted(toy_corpus, folder, tmp_path / "whole")
