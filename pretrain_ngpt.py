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
from megatron_ngpt.data.agreement import check_corpora
from megatron_ngpt.data.corpus import Share, Stage, open_corpora
from megatron_ngpt.data.documents import with_eod
from megatron_ngpt.estimate.options import dry_run_options
from megatron_ngpt.estimate.table import degrees_table, device_notes
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import (
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
from megatron_ngpt.run.checkpoints import newest_here
from megatron_ngpt.run.failed import RunFailed
from megatron_ngpt.run.metrics import check_outputs
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
            print(dry_run(config, dry_ranks or started, (done.step, done.tokens)))
        return
    exit_after, job = seconds_of(config.train.exit_after), read_job()
    run_dir = Path(config.logging.dir)
    facts = {"job": job.id, "restarts": job.restarts, "nodes": job.nodes}
    facts |= {"ranks": launch.world_size, "checkpoints": config.checkpoint_dir}
    if launch.rank == 0:
        check_outputs(config)
    ends_at = min(job.ends_at, time.time() + exit_after)
    with (
        Stop(exit_after) as stop,
        AttemptRecord(run_dir, launch.rank, **facts) as attempt,
        Watchdog(config.train.hang_timeout, run_dir / TROUBLE, launch.rank) as watchdog,
    ):
        pretrain(config, launch, Watch(stop, watchdog, attempt, ends_at))


def pretrain(config: Config, launch: Launch, watch: Watch) -> None:
    """Refuse what the ranks and the corpora do not allow, then build in order and train."""
    config = with_eod(config)
    degrees = Degrees.of(config.parallel, launch.world_size)
    config = fit_micro_batch(config, degrees.dp)
    check_topology(config, degrees)
    stages, valid = open_corpora(config.data)
    config, corpora_notes = check_corpora(config, stages, valid)
    device = pick_device(config.engine.device, launch.local_rank)
    for note in corpora_notes if launch.rank == 0 else ():
        print(f"corpora: {note}", flush=True)
    start(launch, device)
    _train(config, degrees, device, stages, valid, watch)
    if launch.rank == 0 and watch.reason:
        print(f"ends after step {watch.step}: {watch.reason}, saved", flush=True)


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
    done = newest_progress(Path(config.checkpoint_dir), device)
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
    for phase in plan:
        notes = list(device_notes(phase.config, degrees, device))
        print(phase.heading + degrees_table(phase.config, degrees, notes))
    for line in unreached(config, plan):
        print(f"  note: {line}")
    sys.stdout.flush()


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
