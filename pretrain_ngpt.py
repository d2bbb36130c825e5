"""Pretrain nGPT: parse the configuration, build in order, train.

    torchrun --nproc-per-node N pretrain_ngpt.py --config F.yaml [--section.field VALUE ...]

Also started by plain ``python``, ``mpirun``, ``srun`` and the ``deepspeed`` launcher. With
``--dry_run [--world_size N]`` it checks the configuration for N processes, prints who would be
where and what they would need, and trains nothing: no GPU, no data, no other process.
"""

from __future__ import annotations

import io
import sys
import traceback
from contextlib import redirect_stderr

from megatron_ngpt.config import Config, parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.engine.checkpoint.checkpointer import SaveFailed
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.estimate.dry_run import dry_run, dry_run_options
from megatron_ngpt.estimate.table import degrees_table, device_notes
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import (
    Launch,
    finish,
    pick_device,
    read_launch,
    start,
    tell,
    without_local_rank,
)
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.parallel.plan import check_topology
from megatron_ngpt.train.checks import ReplicasDiffer
from megatron_ngpt.train.loop import train
from megatron_ngpt.train.metrics import check_outputs


def main(launch: Launch, argv: list[str]) -> None:
    """Everything that can be refused is refused before the process group starts."""
    dry_ranks, words = dry_run_options(argv)
    config = _parse(words)
    if dry_ranks is not None:
        if launch.rank == 0:
            check_outputs(config)
            started = launch.world_size if launch.world_size > 1 else 0
            print(dry_run(config, dry_ranks or started))
        return
    degrees = Degrees.of(config.parallel, launch.world_size)
    check_topology(config, degrees)
    stages, valid = open_corpora(config.data)
    device = pick_device(config.engine.device, launch.local_rank)
    if launch.rank == 0:
        check_outputs(config)
        notes = list(device_notes(config, degrees, device))
        print(degrees_table(config, degrees, notes), flush=True)
    start(launch, device)
    engine = Engine(config, Mesh.build(degrees, device))
    train(config, engine, stages, valid)


def _parse(argv: list[str]) -> Config:
    """The configuration; a refusal becomes the value of SystemExit, for one rank to tell."""
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            return parse_config(argv)
    except SystemExit as ended:
        raise SystemExit(told.getvalue().rstrip() if ended.code else 0) from None


def run() -> int:
    """Exit code: 0 done, 1 failed while running, 2 refused for what the user asked."""
    launch = Launch()
    try:
        launch = read_launch()
        main(launch, without_local_rank(sys.argv[1:]))
        return 0
    except SystemExit as ended:
        code, why = (2, str(ended.code)) if ended.code else (0, "")
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as err:
        code, why = 2, f"pretrain_ngpt.py: {err}"
    except (FloatingPointError, ReplicasDiffer, SaveFailed) as err:
        code, why = 1, f"pretrain_ngpt.py: {err}"
    except Exception:
        traceback.print_exc()  # of every rank: any may be the one that failed first
        return 1
    if why:
        tell(launch, why)
    return code


if __name__ == "__main__":
    finish(run())
