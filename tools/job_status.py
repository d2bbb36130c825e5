"""How a run is doing: its attempts, what each failure cost, its speed, what a restart begins with.

    python tools/job_status.py RUN_DIR
    python tools/job_status.py RUN_DIR --decide --job ID [--restarts N --exit-code N --tries N]

With ``--decide`` a batch script asks whether to requeue. Exit code 0: yes. 10: no, the run is done.
11: no, it was refused, or fails again and again. Needs only Python and this package's own files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from textwrap import shorten

from megatron_ngpt.console import tool
from megatron_ngpt.run.attempts import (
    VITALS,
    Attempt,
    closed,
    newest,
    read_attempts,
    read_metrics,
    read_records,
)
from megatron_ngpt.run.checkpoints import checkpoints
from megatron_ngpt.run.claim import Claim, read
from megatron_ngpt.run.owner import verdict
from megatron_ngpt.run.queue import in_queue
from megatron_ngpt.run.requeue import decide, without_progress


def main(argv: Sequence[str] | None = None) -> int:
    """Print the status or the decision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, help="logging.dir of the run")
    parser.add_argument("--decide", action="store_true", help="whether to requeue the job")
    parser.add_argument("--job", default="", help="number of the job")
    parser.add_argument("--restarts", type=int, default=0, help="times it was requeued before")
    parser.add_argument("--exit-code", type=int, default=0, help="of the launcher")
    parser.add_argument("--tries", type=int, default=3, help="attempts without a new checkpoint")
    options = parser.parse_args(argv)
    if options.decide:
        run = (options.job, options.restarts, options.exit_code, options.tries)
        return decide(options.run_dir, *run).tell()
    attempts = read_attempts(options.run_dir)
    if not attempts:
        print(f"job_status.py: {options.run_dir}: no run has started there", file=sys.stderr)
        return 2
    print("\n".join(status(options.run_dir, attempts)))
    return 0


def status(run_dir: Path, attempts: Sequence[Attempt]) -> Iterator[str]:
    """The lines that a person reads."""
    records = read_metrics(run_dir)
    last = attempts[-1]
    attempts = [*attempts[:-1], last if last.reason else closed(run_dir, last)]
    yield "attempt  started              job     nodes            ranks  steps          ended by"
    for attempt in attempts:
        yield _row(attempt, running=attempt.number == last.number and not last.reason)
    yield ""
    for before, after in pairwise(attempts):
        yield f"restart {before.number} -> {after.number}: {cost(before, after)}"
    yield from _times(attempts)
    yield from _slowest(run_dir)
    yield _goodput(attempts, records)
    for first, end, speed in _speeds(records):
        yield f"steps {first} to {end}: {speed:.2f} steps/s"
    yield _owner(run_dir)
    yield f"newest checkpoint: {_checkpoint(last)}"
    yield _next(attempts, last)


def _owner(run_dir: Path) -> str:
    """Who owns the run, as far as can be told without watching."""
    held = read(run_dir)
    if held is None or held.claim is None or held.released:
        return "owner: none"
    known = {"free": "which is gone", "alive": "which lives", "silent": "not seen from here"}
    return f"owner: {held.claim}, {known[verdict(held, Claim())]}"


def _row(attempt: Attempt, running: bool) -> str:
    started = datetime.fromtimestamp(attempt.started).isoformat(" ", "seconds")
    steps = f"{attempt.resumed_at} to {attempt.step}" if attempt.resumed_at >= 0 else "none"
    reason = attempt.reason if not running else f"running, or {attempt.reason}"
    return (
        f"{attempt.number:<8} {started}  {attempt.job or '-':<7} {attempt.nodes or '-':<16} "
        f"{attempt.ranks:<6} {steps:<14} {reason} {shorten(attempt.detail, 100)}".rstrip()
    )


def cost(before: Attempt, after: Attempt) -> str:
    """Steps that had to be done again, and seconds from the end to the next new step."""
    lost = steps_lost(before, after)
    if not after.first_step:
        return f"{before.reason}, {lost} steps lost, no step since"
    seconds = after.first_step - before.ended
    return f"{before.reason}, {lost} steps lost, {seconds:.1f} s to the next step"


def steps_lost(before: Attempt, after: Attempt) -> int:
    """Steps of an attempt that the next one does again."""
    return max(before.step, 0) - after.resumed_at if after.resumed_at >= 0 else 0


def _times(attempts: Sequence[Attempt]) -> Iterator[str]:
    """How long starts and saves took, which wait for file systems and compilers."""
    starts = [(a.first_step - a.started, a.number) for a in attempts if a.first_step]
    if starts:
        longest, number = max(starts)
        others = f", longest {longest:.1f} s (attempt {number})" if starts[1:] else ""
        yield f"from a start to its first step: {starts[-1][0]:.1f} s{others}"
    if saves := sum(a.saves for a in attempts):
        mean = sum(a.save_seconds for a in attempts) / saves
        longest = max(a.longest_save for a in attempts)
        yield f"{saves} checkpoints took {mean:.1f} s each, the longest {longest:.1f} s"


def _slowest(run_dir: Path) -> Iterator[str]:
    """The rank that the others wait for, as the newest record of the ranks' times has it."""
    times = [one["rank_seconds"] for one in read_records(run_dir / VITALS) if "rank_seconds" in one]
    if times and (found := times[-1].get("slowest")):
        yield (
            f"rank {found['rank']} costs {found['cost']:.0%} of each step: busy for "
            f"{found['own']:.3g} s, others for {found['others']:.3g} s"
        )


def _goodput(attempts: Sequence[Attempt], records: Sequence[dict]) -> str:
    """How much of the time since the first start went into steps that count."""
    trained = sum(record.get("step_seconds", 0.0) for record in records)
    seconds = max(attempts[-1].ended - attempts[0].started, trained, 1e-9)
    last = attempts[-1]
    lost = sum(steps_lost(*pair) for pair in pairwise(attempts)) + max(0, last.step - last.saved)
    part, whole = (timedelta(seconds=round(number)) for number in (trained, seconds))
    return (
        f"{part} of {whole} since the first start ({trained / seconds:.0%}) went into steps that "
        f"count; {lost} steps were lost"
    )


def _speeds(records: Sequence[dict], parts: int = 5) -> Iterator[tuple[int, int, float]]:
    """The run in equal parts of steps: first and last step, and steps per second of training."""
    size = -(-len(records) // parts) or 1
    for at in range(0, len(records), size):
        part = records[at : at + size]
        seconds = sum(record.get("step_seconds", 0.0) for record in part)
        yield part[0]["step"], part[-1]["step"], len(part) / max(seconds, 1e-9)


def _checkpoint(last: Attempt) -> str:
    found = checkpoints(Path(last.checkpoints)) if last.checkpoints else []
    if not found:
        return f"none yet in {last.checkpoints or 'any folder'}"
    age = timedelta(seconds=round(max(0.0, time.time() - found[0].stat().st_mtime)))
    return f"step {newest(last)} in {last.checkpoints}, {age} old"


def _next(attempts: Sequence[Attempt], last: Attempt) -> str:
    if last.reason == "done":
        return "the run is done"
    state, more = in_queue(last.job)
    goes_on = f"goes on from step {newest(last)}"
    if state == "PENDING":
        failed = without_progress(attempts, last.job)
        return (
            f"next start: job {last.job} {more}, {goes_on}; {failed} attempts in a row without a "
            "new checkpoint so far"
        )
    if state == "GONE":
        return f"job {last.job} is no longer in the queue; submitted again, it {goes_on}"
    if last.reason:
        return f"the next start {goes_on}"
    runs = f"job {last.job} is {state}, {more}; " if state else ""
    return f"{runs}last sign of life {time.time() - attempts[-1].ended:.0f} s ago"


if __name__ == "__main__":
    raise SystemExit(tool(main))
