"""Pretrain nGPT: parse the configuration, build in order, train.

    torchrun --nproc-per-node N pretrain_ngpt.py --config F.yaml [--section.field VALUE ...]

Also started by plain ``python``, ``mpirun``, ``srun`` and the ``deepspeed`` launcher. With
``--dry_run [--world_size N]`` it checks the configuration for N processes, prints who would be
where and what they would need, and trains nothing: no GPU, no data, no other process.
"""

from __future__ import annotations

import io
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ngpt.config import (
    Config,
    Phase,
    check_plan,
    fit_micro_batch,
    parse_config,
    phases,
    seconds_of,
    unreached,
)
from megatron_ngpt.console import say
from megatron_ngpt.data.agreement import check_corpora
from megatron_ngpt.data.corpus import Share, Stage, open_corpora
from megatron_ngpt.data.documents import with_eod
from megatron_ngpt.data.identity import describe
from megatron_ngpt.estimate.options import dry_run_options
from megatron_ngpt.estimate.table import degrees_table, device_notes
from megatron_ngpt.mesh.degrees import AXES, Degrees
from megatron_ngpt.mesh.launch import (
    Job,
    Launch,
    finish,
    pick_device,
    read_job,
    read_launch,
    start,
    tell,
    without_local_rank,
)
from megatron_ngpt.parallel.plan import check_topology
from megatron_ngpt.run.attempts import REFUSED, TROUBLE, AttemptRecord
from megatron_ngpt.run.checkpoints import newest_here, settle
from megatron_ngpt.run.claim import Claim
from megatron_ngpt.run.failed import RunFailed
from megatron_ngpt.run.metrics import check_outputs
from megatron_ngpt.run.owner import Owner
from megatron_ngpt.run.resume import compare, entry_of, starts_over
from megatron_ngpt.train.stop import Stop
from megatron_ngpt.train.watch import Watch
from megatron_ngpt.train.watchdog import Watchdog

if TYPE_CHECKING:
    import torch


def main(launch: Launch, argv: list[str]) -> None:
    """Everything that can be refused is refused before the process group starts."""
    dry_ranks, words = dry_run_options(argv)
    config = _parse(words)
    if dry_ranks is not None:
        if launch.rank == 0:
            check_outputs(config)
            started = launch.world_size if launch.world_size > 1 else 0
            from megatron_ngpt.estimate.dry_run import dry_run

            done = newest_here(Path(config.checkpoint_dir))
            say(dry_run(config, dry_ranks or started, (done.step, done.tokens)))
        return
    job, run_dir = read_job(), Path(config.logging.dir)
    facts = {"job": job.id, "restarts": job.restarts, "nodes": job.nodes}
    facts |= {"ranks": launch.world_size, "checkpoints": config.checkpoint_dir}
    if launch.rank == 0:
        check_outputs(config)
    with _owner(config, launch, job) as owner:
        exit_after = seconds_of(config.train.exit_after)
        ends_at = min(job.ends_at, time.time() + exit_after)
        trouble, limit = run_dir / TROUBLE, config.train.hang_timeout
        may_leave = partial(owner.may_leave, run_dir)
        with (
            Stop(exit_after) as stop,
            AttemptRecord(run_dir, launch.rank, owner, **facts) as attempt,
            Watchdog(limit, trouble, launch.rank, may_leave) as watchdog,
        ):
            pretrain(config, launch, Watch(stop, watchdog, attempt, owner, ends_at=ends_at))


def _owner(config: Config, launch: Launch, job: Job) -> Owner:
    """The claim of this start on the folders that it writes to."""
    me = Claim(
        job=job.id,
        launch=f"{launch.name} {job.series}",
        series=job.series,
        started=time.strftime("%F %T"),
        lease=config.logging.owner_lease,
    )
    places = {"logging.dir": config.logging.dir, "checkpoint.dir": config.checkpoint_dir}
    wait = seconds_of(config.logging.owner_wait) if config.logging.owner_wait else 0.0
    return Owner({name: Path(place) for name, place in places.items()}, me, launch.rank, wait)


def pretrain(config: Config, launch: Launch, watch: Watch) -> None:
    """Refuse what the ranks and the corpora do not allow, then build in order and train."""
    if launch.rank == 0:
        _look_before(config, watch)
    given, config = config, with_eod(config)
    degrees = Degrees.of(config.parallel, launch.world_size)
    config = fit_micro_batch(config, degrees.dp)
    check_topology(config, degrees)
    if config.train.compile:
        from megatron_ngpt.parallel.compiled import keep_compiled

        keep_compiled(config)
    stages, valid = open_corpora(config.data)
    config, corpora_notes = check_corpora(config, stages, valid)
    device = pick_device(config.engine.device, launch.local_rank)
    if launch.rank == 0:
        _compare(given, degrees, stages, watch)
        for note in corpora_notes:
            say(f"corpora: {note}")
    start(launch, device, config.train.deterministic)
    _train(config, degrees, device, stages, valid, watch)
    if launch.rank == 0 and watch.reason:
        say(f"ends after step {watch.step}: {watch.reason}, saved")


def _train(
    config: Config,
    degrees: Degrees,
    device: torch.device,
    stages: Sequence[Stage],
    valid: Sequence[Share],
    watch: Watch,
) -> None:
    """Phase after phase, joined to the process group."""
    # not at the top: a mistake in the settings is told before these seconds
    from megatron_ngpt.engine.checkpoint.checkpointer import newest_progress
    from megatron_ngpt.engine.engine import Engine
    from megatron_ngpt.mesh.mesh import Mesh
    from megatron_ngpt.train.agree import agree, check_shared
    from megatron_ngpt.train.loop import train

    agree(config, stages, valid)
    check_shared(
        {"logging.dir": Path(config.logging.dir), "checkpoint.dir": Path(config.checkpoint_dir)}
    )
    mesh = Mesh.build(degrees, device)
    done = newest_progress(Path(config.checkpoint_dir), Path(config.logging.dir), device)
    check_plan(config, done.step, done.tokens)
    plan = phases(config, done.step, done.tokens)
    for phase in plan:
        check_topology(phase.config, degrees)
    if mesh.rank == 0:
        tell_plan(config, plan, degrees, device)
    goal, ended = config.train.stop_at or config.train.steps, False
    while not ended:
        engine = Engine(phases(config, done.step, done.tokens)[0].config, mesh)
        done = train(config, engine, stages, valid, watch)
        engine.close()
        ended = bool(watch.reason) or done.step >= goal


def tell_plan(
    config: Config, plan: Sequence[Phase], degrees: Degrees, device: torch.device
) -> None:
    """Print who is where in every phase to come, and which stages there will not be."""
    for number, phase in enumerate(plan):
        notes = list(device_notes(phase.config, degrees, device))
        heading = phase.heading if number else ""  # a start is where the run stands
        say(heading + degrees_table(phase.config, degrees, notes))
    for line in unreached(config, plan):
        say(f"  note: {line}")


def _look_before(config: Config, watch: Watch) -> None:
    """Put the checkpoints in order, and refuse to go on where they are gone; on rank 0."""
    watch.guard()
    for line in settle(Path(config.checkpoint_dir)):
        say(line, sys.stderr)
    if starts_over(config) and watch.attempt:
        watch.attempt.note(started_over=True)


def _compare(config: Config, degrees: Degrees, stages: Sequence[Stage], watch: Watch) -> None:
    """Tell and refuse what differs from the run so far; on rank 0."""
    number = watch.attempt.number if watch.attempt else 0
    topology = dict(zip(AXES, degrees.shape, strict=True))
    entry = entry_of(config, number, topology, describe(config.data, stages))
    watch.entry = compare(config, entry)


def _parse(argv: list[str]) -> Config:
    """The configuration; a refusal becomes the value of SystemExit, for one rank to tell."""
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return parse_config(argv)
    except SystemExit as ended:
        raise SystemExit(told.getvalue().rstrip() if ended.code else 0) from None


def run() -> int:
    """Exit code: 0 done or stopped and saved, 1 failed, 2 refused for what the user asked.

    A rank that stands still ends with 3 (train/watchdog.py).
    """
    launch = Launch()
    try:
        launch = read_launch()
        main(launch, without_local_rank(sys.argv[1:]))
        return 0
    except SystemExit as ended:
        code, why = (2, str(ended.code)) if ended.code else (0, "")
    except REFUSED as err:
        code, why = 2, f"pretrain_ngpt.py: {err}"
    except (FloatingPointError, RunFailed) as err:
        code, why = 1, f"pretrain_ngpt.py: {err}"
    except Exception:
        traceback.print_exc()  # of every rank: any may be the one that failed first
        return 1
    if why:
        tell(launch, why)
    return code


if __name__ == "__main__":
    finish(run())
