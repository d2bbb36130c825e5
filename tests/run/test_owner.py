"""One owner of a run: real processes that are killed, stopped and woken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_ngpt.run import claim as claims
from megatron_ngpt.run.claim import Claim
from megatron_ngpt.run.owner import Clock, Owned, Owner, OwnerLost, living, verdict, watch

HOLD = """
import sys, time
from pathlib import Path
from megatron_ngpt.run.claim import Claim
from megatron_ngpt.run.lines import LineFile
from megatron_ngpt.run.owner import Owner, OwnerLost
folder, name = Path(sys.argv[1]), sys.argv[2]
with Owner({"logging.dir": folder}, Claim(job=name, lease=float(sys.argv[3]))) as owner:
    lines = LineFile(folder / "lines", owner.check)
    try:
        while True:
            lines.write(name)
            time.sleep(0.01)
    except OwnerLost as err:
        print(err)
        sys.exit(1)
"""


@contextmanager
def holding(folder: Path, name: str, lease: float = 120):
    """Another process that owns the folder and writes its name into a file."""
    words = [sys.executable, "-c", HOLD, str(folder), name, str(lease)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: name in lines(folder))
        yield process
    finally:
        process.kill()
        process.wait()


def lines(folder: Path) -> list[str]:
    path = folder / "lines"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def owner(folder: Path, me: Claim | None = None, **options) -> Owner:
    return Owner({"logging.dir": folder}, me or Claim(lease=0.5), **options)


class Watcher(Clock):
    """A clock that a test moves; each sleep may also do something."""

    def __init__(self, meanwhile=lambda: None, jump: float = 0.0) -> None:
        self.time, self.slept, self.meanwhile, self.jump = 0.0, 0.0, meanwhile, jump
        super().__init__(lambda: self.time, self._sleep)

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)  # the base class is frozen

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.time += seconds + self.jump
        self.meanwhile()


def test_a_second_process_is_refused_and_a_killed_one_taken_over(tmp_path):
    with holding(tmp_path, "first") as first:
        with pytest.raises(Owned) as refused, owner(tmp_path):
            pass
        for fact in ("logging.dir = ", f"process {first.pid} on {os.uname().nodename}, job first"):
            assert fact in str(refused.value)
        assert verdict(claims.read(tmp_path), Claim()) == "alive", "nothing of it was touched"
        first.kill()
        # dead, and not yet waited for: a zombie owns nothing
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        with owner(tmp_path) as second:
            second.check()
    assert claims.read(tmp_path).released
    assert claims.numbers(tmp_path) == [2], "older claims are cleared away"


def test_a_stopped_owner_that_wakes_up_writes_nothing_more(tmp_path):
    with holding(tmp_path, "first", lease=1) as first:
        first.send_signal(signal.SIGSTOP)
        wait_for(lambda: verdict(claims.read(tmp_path), Claim()) == "silent")
        written = lines(tmp_path)
        with owner(tmp_path, Claim(job="second")) as second:
            first.send_signal(signal.SIGCONT)
            told = first.communicate(timeout=60)[0]
            second.check()
            assert first.returncode == 1
            assert "was taken over by process" in told
            assert "job second" in told
            assert lines(tmp_path)[len(written) + 1 :] == []  # it stopped after a look at most


def test_a_later_start_of_the_same_job_takes_over_at_once(tmp_path):
    """A requeued job, while ranks of the one before may still stand somewhere."""
    old = Claim(series={"slurm x 17": 0}, machine="elsewhere", job="17")
    assert claims.create(tmp_path, 1, old)
    clock = Watcher()
    for series in ({"slurm x 17": 0}, {"slurm x 18": 1}, {}):
        assert verdict(claims.read(tmp_path), Claim(series=series)) == "silent"
    with owner(tmp_path, Claim(series={"slurm x 17": 1}), clock=clock):
        assert clock.slept == 0


def test_an_owner_elsewhere_is_watched_by_its_pulse_never_by_its_clock(tmp_path, monkeypatch):
    elsewhere = Claim(machine="elsewhere", lease=60)
    claims.create(tmp_path, 1, elsewhere)
    os.utime(claims.path_of(tmp_path, 1), (4e9, 4e9))  # its clock is far ahead
    monkeypatch.setattr(time, "time", lambda: 0.0)  # ours goes back
    clock = Watcher()
    assert living(tmp_path, clock=clock) is None
    assert 60 <= clock.slept <= 62
    beats = iter(range(1, 99))
    clock = Watcher(lambda: claims.write_pulse(tmp_path, 1, next(beats)))
    assert living(tmp_path, clock=clock) == elsewhere
    assert clock.slept <= 3, "one sign of life is enough"


def test_a_clock_that_jumps_does_not_end_a_lease(tmp_path):
    """All machines were suspended for an hour: the owner could not beat either."""
    claims.create(tmp_path, 1, Claim(machine="elsewhere", lease=60))
    held, clock = claims.read(tmp_path), Watcher(jump=3600)
    clock.meanwhile = lambda: clock.slept < 20 or claims.write_pulse(tmp_path, 1, 5)
    assert watch(tmp_path, held, clock) == "alive"
    backwards = Watcher(jump=-100)
    backwards.meanwhile = lambda: backwards.slept < 200 or claims.write_pulse(tmp_path, 1, 6)
    assert watch(tmp_path, claims.read(tmp_path), backwards) == "alive"


def test_of_many_that_take_over_at_once_one_wins(tmp_path):
    with holding(tmp_path, "dead") as dead:
        dead.kill()
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [subprocess.Popen([*words, f"taker{n}", "9"], **pipes) for n in range(5)]
    try:
        wait_for(lambda: sum(p.poll() is not None for p in several) == 4)
        assert len({line for line in lines(tmp_path) if line != "dead"}) == 1
    finally:
        for process in several:
            process.kill()
            process.communicate()


def test_waiting_instead_of_being_refused(tmp_path, capfd):
    with holding(tmp_path, "first") as first:
        clock = Watcher(lambda: (first.kill(), first.wait()))
        with owner(tmp_path, wait=10, clock=clock) as second:
            second.check()
    assert "waiting for the end of process" in capfd.readouterr().err
    with holding(tmp_path, "third"), pytest.raises(Owned), owner(tmp_path, wait=3, clock=Watcher()):
        pass


def test_both_folders_or_none(tmp_path):
    places = {"logging.dir": tmp_path / "mine", "checkpoint.dir": tmp_path / "theirs"}
    for folder in places.values():
        folder.mkdir()
    with holding(tmp_path / "theirs", "first"):
        with pytest.raises(Owned, match=r"checkpoint.dir = .*theirs"), Owner(places, Claim()):
            pass
        assert claims.read(tmp_path / "mine").released


def test_one_folder_by_two_names(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with Owner({"logging.dir": tmp_path, "checkpoint.dir": tmp_path / "link"}, Claim()) as both:
        both.check()


def test_a_folder_that_was_deleted_and_begun_anew_is_another_one(tmp_path):
    with owner(tmp_path) as first:
        claims.path_of(tmp_path, 1).unlink()
        with pytest.raises(OwnerLost, match="folder was deleted"):
            first.check()
        claims.create(tmp_path, 1, Claim())
        with pytest.raises(OwnerLost, match="taken over"):
            first.check()


def test_last_words_go_where_the_own_start_is_the_owner(tmp_path):
    me = Claim(launch="2 ranks at a:1")
    rank_1 = owner(tmp_path, me, rank=1, clock=Watcher())
    assert rank_1.may_leave(tmp_path), "nobody owns it yet"
    with owner(tmp_path, me):
        assert rank_1.may_leave(tmp_path)
        other = owner(tmp_path, Claim(launch="2 ranks at a:2"), rank=1, clock=Watcher())
        assert not other.may_leave(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"token": 1, "later": 2}\n0\n', "\xff\n"])
def test_a_claim_that_cannot_be_read_may_live(tmp_path, text):
    claims.create(tmp_path, 1, Claim())
    claims.path_of(tmp_path, 1).write_text(text)
    assert verdict(claims.read(tmp_path), Claim()) == "silent"
    with owner(tmp_path, clock=Watcher()) as taken:
        taken.check()


def test_without_links_a_claim_is_still_made_by_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    assert claims.create(tmp_path, 1, Claim())
    assert not claims.create(tmp_path, 1, Claim())
    assert json.loads(claims.path_of(tmp_path, 1).read_text().splitlines()[0])["pid"] == os.getpid()
