"""A whole job of preprocessing: plan, encode, merge; go on where an interrupted one stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

from megatron_ngpt.data.bulk import load_tokenizer
from megatron_ngpt.data.indexed.assembly import Assembly
from megatron_ngpt.data.indexed.files import Stretch
from megatron_ngpt.data.preprocess.encode import ShardEncoder
from megatron_ngpt.data.preprocess.job import PreprocessJob, cores
from megatron_ngpt.data.preprocess.lock import exclusive
from megatron_ngpt.data.preprocess.merge import Merge, Summary
from megatron_ngpt.data.preprocess.parts import Parts
from megatron_ngpt.data.preprocess.plan import Shard, plan_shards
from megatron_ngpt.data.preprocess.progress import Progress
from megatron_ngpt.data.preprocess.team import Alone, Team
from megatron_ngpt.data.preprocess.workers import encode_in_processes
from megatron_ngpt.data.sources import Source, find_sources
from megatron_ngpt.data.sources.files import STDIN
from megatron_ngpt.data.sources.readers import ENDINGS

_T = TypeVar("_T")
Report = Callable[[str], None]


class _Plan(NamedTuple):
    sources: list[Source]
    shards: list[Shard]
    todo: list[Shard]
    """Those that no job before has finished."""
    attempt: str
    """Name of the list from which processes draw them."""


def preprocess(job: PreprocessJob, report: Report, team: Team | None = None) -> Summary:
    """Encode all documents and write one pair per key.

    The bytes written depend on the input and the tokenizer, not on encoder, threads, processes or
    interruptions. A job that is killed or refused leaves its finished shards in ``PREFIX.parts``;
    the same job goes on from there. Pairs appear when all is done.

    Args:
        job: inputs, output and how.
        report: called with lines that say how the job is done; other ranks than 0 are silent.
        team: the processes that an MPI launcher has started for this job, each of which calls
            this function; each draws the next shard when it is ready for it.

    Returns:
        What was done; the same on every rank.

    Raises:
        FileNotFoundError: without the tokenizer file.
        ModuleNotFoundError: when a package that the job needs is not installed.
        ValueError: for a setting that cannot work, for a record that cannot be used unless
            ``on_error`` is "skip", when no document is left, when another process makes the same
            pairs, and when an unfinished job had other options.
    """
    team, parts = team or Alone(), Parts.of(job.output_prefix)
    if team.rank:
        report = _silent
    with ExitStack() as held:
        plan = _on_first(team, lambda: _plan(job, parts, held, report))
        try:
            _encode(job, parts, plan, team, report)
            return _merge(job, parts, plan, team)
        except BaseException:
            if team.rank == 0:
                _leave(parts, plan, report)
            raise


def _silent(line: str) -> None:
    """Rank 0 has said it."""


def _plan(job: PreprocessJob, parts: Parts, held: ExitStack, report: Report) -> _Plan:
    job.check()
    sources = find_sources(job.inputs, ENDINGS[job.format])
    load_tokenizer(job.tokenizer)  # refused before anything is written
    parts.folder.parent.mkdir(parents=True, exist_ok=True)
    held.enter_context(exclusive(Path(f"{job.output_prefix}.lock"), job.output_prefix))
    if STDIN in job.inputs:
        parts.remove()  # nobody can tell whether it is the same text again
    shards = plan_shards(sources, job.format == "jsonl", int(job.shard_mb * 1e6))
    finished = parts.begin(job.identity(sources), shards)
    if finished:
        report(f"going on with {parts.folder}: {len(finished)} of {len(shards)} shards are done")
    todo = [shard for shard in shards if shard.number not in finished]
    return _Plan(sources, shards, todo, parts.begin_drawing())


def _encode(job: PreprocessJob, parts: Parts, plan: _Plan, team: Team, report: Report) -> None:
    threads, todo = _threads(job, team), plan.todo
    if team.size * job.processes > 1:
        todo = sorted(todo, key=lambda shard: -shard.size)  # so that no long one is left to the end
    # Decompressed sizes are not known, and a share of them would be wrong.
    known = all(source.seekable for source in plan.sources)
    total = sum(shard.size for shard in todo) // team.size if known else 0

    def encode() -> None:
        with Progress(total, job.log_interval, show=team.rank == 0) as progress:
            if job.processes > 1:
                report(_how(plan, team, f"in {job.processes} processes of {threads} thread(s)"))
                encode_in_processes(job, parts, threads, todo, plan.attempt, progress.add)
            else:
                encoder = ShardEncoder(job, parts, threads)
                report(_how(plan, team, f"encoded by {encoder.how} in {threads} thread(s)"))
                encoder.run(parts.draw(todo, plan.attempt), progress.add)

    _on_all(team, lambda: _or_fail(parts, encode))


def _or_fail(parts: Parts, action: Callable[[], None]) -> None:
    """When it fails, the other processes stop before their next shard."""
    try:
        action()
    except Exception:
        parts.fail()
        raise


def _threads(job: PreprocessJob, team: Team) -> int:
    return job.workers or max(1, cores() // (team.mates * job.processes))


def _merge(job: PreprocessJob, parts: Parts, plan: _Plan, team: Team) -> Summary:
    """Every rank copies its share; rank 0 begins and ends."""
    merge = Merge(job, plan.sources, parts, plan.shards)
    summary, assemblies = _on_first(team, merge.begin)
    try:
        stretches = _on_all(team, lambda: [_copy(job, each, plan, team) for each in assemblies])
        return _on_first(team, lambda: merge.finish(summary, assemblies, stretches))
    except BaseException:
        for assembly in assemblies if team.rank == 0 else ():
            assembly.abandon()
        raise


def _copy(job: PreprocessJob, assembly: Assembly, plan: _Plan, team: Team) -> list[Stretch]:
    mine = range(team.rank, len(plan.shards), team.size)
    return assembly.copy(mine, _threads(job, team) * job.processes)


def _how(plan: _Plan, team: Team, how: str) -> str:
    size = sum(source.size for source in plan.sources)
    ranks = f", on {team.size} ranks" if team.size > 1 else ""
    shards = f", {len(plan.shards)} shards" if len(plan.shards) > 1 else ""
    return f"{size / 1e6:.1f} MB in {len(plan.sources)} file(s){shards}, {how}{ranks}"


def _leave(parts: Parts, plan: _Plan, report: Report) -> None:
    """After a failure: keep what another try can go on from."""
    finished = sum(parts.report(shard.number) is not None for shard in plan.shards)
    if finished:
        report(
            f"{finished} of {len(plan.shards)} shards are finished and kept in {parts.folder}: the "
            "same command goes on from there; delete that folder to begin anew"
        )
    else:
        parts.remove()


def _on_first(team: Team, action: Callable[[], _T]) -> _T:
    """Rank 0 acts; every rank gets the result, or raises what it raised (collective)."""
    result, failure = None, None
    if team.rank == 0:
        try:
            result = action()
        except Exception as err:
            failure = err
    result, failure = team.share((result, failure))
    _raise_first([failure])
    found: _T = result
    return found


def _on_all(team: Team, action: Callable[[], _T]) -> list[_T]:
    """Every rank acts; every rank gets all results by rank, or raises the first that one raised."""
    result, failure = None, None
    try:
        result = action()
    except Exception as err:
        failure = err
    results, failures = zip(*team.collect((result, failure)), strict=True)
    _raise_first(failures)
    return list(results)


def _raise_first(failures: Iterable[Exception | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure
