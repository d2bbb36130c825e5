"""Pretrain nGPT: parse the configuration, build in order, train.

    torchrun --nproc-per-node N pretrain_ngpt.py --config F.yaml [--section.field VALUE ...]

Also started by plain ``python``, ``mpirun``, ``srun`` and the ``deepspeed`` launcher.
"""

from __future__ import annotations

import sys
import traceback

from megatron_ngpt.config import parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import (
    Launch,
    finish,
    pick_device,
    read_launch,
    start,
    without_local_rank,
)
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.parallel.plan import check_topology
from megatron_ngpt.train.loop import train


def main(launch: Launch, argv: list[str]) -> None:
    """Everything that can be refused is refused before the process group starts."""
    config = parse_config(argv)
    degrees = Degrees.of(config.parallel, launch.world_size)
    check_topology(config, degrees)
    corpus, valid = open_corpora(config.data)
    device = pick_device(config.engine.device, launch.local_rank)
    start(launch, device)
    engine = Engine(config, Mesh.build(degrees, device))
    train(config, engine, corpus, valid)


def run() -> int:
    """Exit code: 0 done, 1 failed while running, 2 refused for what the user asked."""
    launch = read_launch()
    try:
        main(launch, without_local_rank(sys.argv[1:]))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as err:
        if launch.rank == 0:
            print(f"pretrain_ngpt.py: {err}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    finish(run())
