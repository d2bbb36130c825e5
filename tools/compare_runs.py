"""The first step, parameter, rank and box at which two runs or checkpoints differ; by how much.

    python tools/compare_runs.py A B

A and B are runs (logging.dir), folders of checkpoints, or single checkpoints, of any topologies. Of
runs, the records of every step are compared, but for times, and the oldest pair of checkpoints of
one step that differs. Exit code 0: no difference; 1: some; 2: there is nothing to compare.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path

from megatron_ngpt.config import Config
from megatron_ngpt.console import tool
from megatron_ngpt.run.attempts import METRICS, read_metrics
from megatron_ngpt.run.changes import changes
from megatron_ngpt.run.checkpoints import STATE, checkpoints, step_of
from megatron_ngpt.run.durable import INDEX, DamagedCheckpoint
from megatron_ngpt.run.ledger import Entry, flat, plain, read_ledger

TIMES = ("seconds", "per_second", "_bytes", "mfu", "time")
"""How names of metrics end that no two runs have alike."""
SHOWN = 12
"""Tensors and boxes of each that are listed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print what differs; the exit code tells whether anything does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    options = parser.parse_args(argv)
    try:
        lines = list(compare(options.a, options.b))
    except (FileNotFoundError, ValueError, DamagedCheckpoint) as err:
        print(f"compare_runs.py: {err}", file=sys.stderr)
        return 2
    different = [line for line in lines if not line.startswith("equal")]
    print("\n".join(lines))
    return 1 if different else 0


def compare(a: Path, b: Path) -> Iterator[str]:
    """The lines of the report; those of what is equal begin so.

    Raises:
        FileNotFoundError: there is nothing in one of them, or nothing that both have.
    """
    if _is_checkpoint(a) and _is_checkpoint(b):
        yield from _checkpoints(a, b)
        return
    told = [*_metrics(a, b), *_oldest_that_differs(a, b)]
    if not told:
        raise FileNotFoundError(f"{a} and {b} have no step and no checkpoint's step in common")
    yield from told


def _is_checkpoint(place: Path) -> bool:
    return (place / INDEX).is_file() or (place / STATE).is_file()


def _metrics(a: Path, b: Path) -> Iterator[str]:
    """The first step whose records differ, and what else differs between the runs there."""
    one, other = ({int(r["step"]): r for r in read_metrics(place)} for place in (a, b))
    common = sorted(one.keys() & other.keys())
    if not common:
        return
    for step in common:
        if told := list(_apart(one[step], other[step])):
            yield f"step {step} is the first whose records differ: {'; '.join(told)}"
            later = sum(any(_apart(one[s], other[s])) for s in common if s > step)
            yield f"  of {len(common)} steps that both have, {later} later ones differ, too"
            yield from _settings(a, b, step, int(one[step].get("tokens", 0)))
            return
    yield f"equal in {METRICS}: {len(common)} steps, {common[0]} to {common[-1]}"


def _apart(one: dict[str, float], other: dict[str, float]) -> Iterator[str]:
    for name in one.keys() & other.keys():
        if one[name] != other[name] and not name.endswith(TIMES):
            if isnan(one[name]) and isnan(other[name]):
                continue
            scale = max(abs(one[name]), abs(other[name]))
            by = abs(one[name] - other[name]) / scale if scale else 0.0
            yield f"{name} {one[name]!r} and {other[name]!r} (apart by {by:.2g} of it)"


def _settings(a: Path, b: Path, step: int, tokens: int) -> Iterator[str]:
    """Settings, corpora, code, packages and topology that were not the same there."""
    mine, theirs = (_in_force(place, step) for place in (a, b))
    if mine and theirs:
        defaults = plain(flat(Config().to_dict()))
        for change in changes(mine, theirs, defaults, tokens):
            if change.name not in ("logging.dir", "checkpoint.dir"):
                yield f"  A -> B: {change}"


def _in_force(run_dir: Path, step: int) -> Entry | None:
    return next((entry for entry in reversed(read_ledger(run_dir)) if entry.step < step), None)


def _oldest_that_differs(a: Path, b: Path) -> Iterator[str]:
    one, other = ({step_of(path): path for path in _found(place)} for place in (a, b))
    equal: list[int] = []
    for step in sorted(one.keys() & other.keys()):
        lines = list(_checkpoints(one[step], other[step]))
        if lines[0].startswith("equal"):
            equal.append(step)
        else:
            yield from lines
            break
    if equal:
        yield f"equal in checkpoints of steps {', '.join(map(str, equal))}"


def _found(place: Path) -> list[Path]:
    if _is_checkpoint(place):
        return [place]
    return checkpoints(place) or checkpoints(place / "checkpoints")


def _checkpoints(a: Path, b: Path) -> Iterator[str]:
    # with numpy, which --help does not wait for
    from megatron_ngpt.engine.checkpoint.difference import differences

    steps = {step_of(a), step_of(b)}
    what = f"checkpoints of step {' and '.join(map(str, sorted(steps)))}"
    found = list(differences(a, b))
    if not found:
        yield f"equal in {what}: every value of every tensor"
        return
    yield f"{what}: {len(found)} tensors differ"
    for difference in found[:SHOWN]:
        if difference.why:
            yield f"  {difference.name}: {difference.why}"
            continue
        count = sum(spot.count for spot in difference.spots)
        yield f"  {difference.name}: {count:,} of {difference.size:,} values"
        for spot in difference.spots[:SHOWN]:
            values = " and ".join(f"{value:.9g}" for value in spot.values)
            ranks = " and ".join(f"rank {_rank(file)}" for file in spot.files)
            box = " x ".join(f"[{first}, {end})" for first, end in spot.window)
            yield (
                f"    {spot.count:,} in box {box}, of {ranks}: by up to {spot.largest:.3g}, at "
                f"{list(spot.at)} {values}"
            )
        if len(difference.spots) > SHOWN:
            yield f"    and in {len(difference.spots) - SHOWN} more boxes"
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN} more tensors"


def _rank(file: str) -> str:
    """Rank that wrote a file of a checkpoint."""
    number = file.removeprefix("rank_").partition("_")[0]
    return str(int(number)) if number.isdigit() else file


if __name__ == "__main__":
    raise SystemExit(tool(main))
