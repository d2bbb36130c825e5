"""One owner of a run's folders at a time, on file systems whose locks cannot be trusted, too.

The owner renews its claim by a heartbeat and looks before each write whether the claim is still its
own. Another start takes over when the owner's process is gone, when it is a later start of the same
job, or when it saw no heartbeat for as long as the claim says. Clocks are never compared.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ngpt.run import claim as claims
from megatron_ngpt.run.claim import Claim, Held
from megatron_ngpt.run.failed import RunFailed
from megatron_ngpt.run.process import state_of

Verdict = Literal["free", "alive", "silent"]
_BEATS = 24
"""Heartbeats in a lease."""


class OwnerLost(RunFailed):
    """Somebody else owns the run now; this process must not write to it any more."""


class Owned(ValueError):
    """The folder belongs to a run that goes on."""


@dataclass(frozen=True)
class Clock:
    """What waits, and what measures it; tests have their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def verdict(held: Held | None, me: Claim) -> Verdict:
    """What is known of the owner at once; ``silent``: it may live where it cannot be seen."""
    if held is None or held.released:
        return "free"
    theirs = held.claim
    if theirs is None:
        return "silent"
    if any(me.series.get(name, -1) > count for name, count in theirs.series.items()):
        return "free"  # the scheduler ended that start before it made this one
    state = state_of(theirs.machine, theirs.pid, theirs.process_start)
    known: dict[str, Verdict] = {"gone": "free", "alive": "alive"}
    return known.get(state, "silent")


def watch(folder: Path, held: Held, clock: Clock = Clock()) -> Verdict:
    """``alive`` as soon as a silent owner shows life, ``free`` when it did not for its lease.

    Time in which this process did not look does not count: when all machines were suspended, the
    owner had no chance either.
    """
    lease = held.claim.lease if held.claim else Claim().lease
    step, silent, before = min(1.0, lease / 20), 0.0, clock.now()
    while silent < lease:
        clock.sleep(step)
        now = clock.now()
        silent, before = silent + min(max(0.0, now - before), 2 * step), now
        later = claims.read(folder)
        if later is None or later.number != held.number or later.released:
            return "free"  # to be looked at anew
        if later.pulse != held.pulse:
            return "alive"
    return "free"


def living(
    folder: Path,
    me: Claim | None = None,
    clock: Clock = Clock(),
    tell: Callable[[str], None] = lambda _: None,
) -> Claim | None:
    """Who owns a folder and lives; None when it is free. Watches for a lease where it must."""
    me = me or Claim()
    while (held := claims.read(folder)) is not None:
        found = verdict(held, me)
        if found == "silent":
            owner = held.claim or "somebody"
            tell(f"{folder} is owned by {owner}, not to be seen from here: watching for its pulse")
            found = watch(folder, held, clock)
        if found == "alive":
            return held.claim or Claim(host="another host", pid=0)
        now = claims.read(folder)
        if now is None or now.number == held.number:
            return None
    return None


class Owner:
    """Owns folders from ``with`` on, on rank 0; on other ranks says whether rank 0 does.

    Args:
        places: the folders, by the setting that names each.
        me: the claim to make.
        rank: this process's.
        wait: seconds to wait for the owner's end instead of being refused.
        clock: for tests.

    Raises:
        Owned: another run owns one of them.
    """

    def __init__(
        self,
        places: Mapping[str, Path],
        me: Claim,
        rank: int = 0,
        wait: float = 0.0,
        clock: Clock = Clock(),
    ) -> None:
        self.places = {setting: folder.resolve() for setting, folder in places.items()}
        self.me, self.rank, self.wait, self.clock = me, rank, wait, clock
        self.told: set[str] = set()
        self.held: dict[Path, int] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="owner", daemon=True)

    def __enter__(self) -> Owner:
        if self.rank:
            self._await_rank_0()
            return self
        try:
            for setting, folder in self.places.items():
                if folder not in self.held:
                    self.held[folder] = self._take(setting, folder)
        except BaseException:
            self._release()
            raise
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.rank == 0:
            self.thread.join()
            self._release()

    def check(self) -> None:
        """Look before a write whether the folders are still this run's; two reads of small files.

        Raises:
            OwnerLost: they are not.
        """
        for folder, number in self.held.items():
            if not claims.owns(folder, number, self.me):
                held = claims.read(folder)
                by = f"by {held.claim}" if held and held.claim else "or its folder was deleted"
                raise OwnerLost(
                    f"{folder} was taken over {by}, while this process ({self.me}) stood still: "
                    "it writes nothing more"
                )

    def may_leave(self, folder: Path) -> bool:
        """Whether a rank's last words belong to the start that owns a folder."""
        for _ in range(20):  # rank 0 may just be making its claim
            held = claims.read(folder)
            if held is None or (held.claim and held.claim.launch == self.me.launch):
                return True
            if self.rank == 0:
                return False
            self.clock.sleep(0.1)
        return False

    def _take(self, setting: str, folder: Path) -> int:
        """Make the next claim as soon as nobody else's counts; its number."""
        end = self.clock.now() + self.wait
        while True:
            if owner := living(folder, self.me, self.clock, self._tell):
                if self.clock.now() >= end:
                    raise Owned(
                        f"{setting} = {folder} belongs to a run that goes on: {owner}. Let it end, "
                        "or wait for it with logging.owner_wait, or choose another folder"
                    )
                self._tell(f"{folder}: waiting for the end of {owner}")
                self.clock.sleep(1.0)
            elif number := self._claim(setting, folder):
                return number

    def _claim(self, setting: str, folder: Path) -> int:
        """Make the next claim; its number, 0 when another start was faster."""
        held = claims.read(folder)
        number = held.number + 1 if held else 1
        try:
            if not claims.create(folder, number, self.me):
                return 0
            claims.drop_older(folder, number)
        except OSError as err:
            raise ValueError(f"{setting} = {folder}: no claim can be written there: {err}") from err
        return number

    def _tell(self, message: str) -> None:
        """Each message once."""
        if message not in self.told:
            self.told.add(message)
            print(message, file=sys.stderr, flush=True)

    def _await_rank_0(self) -> None:
        """While rank 0 waits for an owner's end, so do the others: none comes to the meeting."""
        folder, end = next(iter(self.places.values())), self.clock.now() + self.wait
        while self.clock.now() < end:
            held = claims.read(folder)
            if held and held.claim and held.claim.launch == self.me.launch and not held.released:
                return
            self.clock.sleep(1.0)

    def _beat(self) -> None:
        for count in self._counts():
            for folder, number in self.held.items():
                with suppress(OSError):  # the next one may get through; check() decides
                    claims.write_pulse(folder, number, count)

    def _counts(self) -> Iterator[int]:
        count = 0
        while not self.ended.wait(self.me.lease / _BEATS):
            count += 1
            yield count

    def _release(self) -> None:
        for folder, number in self.held.items():
            with suppress(OSError):
                claims.write_pulse(folder, number, claims.RELEASED)
        self.held = {}
