"""A start without GPUs, data or other processes: everything is built on the meta device.

Each rank looked at joins a fake process group of the wanted size, in which collectives do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_ngpt.config import Config, check_plan, phases, unreached
from megatron_ngpt.estimate.state import RankState
from megatron_ngpt.estimate.table import degrees_table
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import pick_attention
from megatron_ngpt.parallel.apply import build_parts, table_parameters
from megatron_ngpt.parallel.pipeline import Pipeline
from megatron_ngpt.parallel.plan import check_topology
from megatron_ngpt.parallel.shard import local_shard
from megatron_ngpt.parallel.stages import stage_map


def dry_run(config: Config, world_size: int, done: tuple[int, int] = (0, 0)) -> str:
    """Check all that a start checks but data and output folders; the degrees table.

    Args:
        config: the run's.
        world_size: how many processes it would have; 0 for as few as its degrees allow.
        done: steps and tokens after which the run stands.

    Raises:
        ValueError: what a start would refuse.
    """
    parallel = config.parallel
    degrees = Degrees.of(parallel, world_size or parallel.tp * parallel.pp * parallel.cp)
    check_plan(config, *done)
    plan, told = phases(config, *done), []
    for phase in plan:
        check_topology(phase.config, degrees)
        build_first_and_last(phase.config, degrees)
        told.append(phase.heading + degrees_table(phase.config, degrees))
    told += [f"  note: {line}" for line in unreached(config, plan)]
    return "\n".join(told)


def build_first_and_last(config: Config, degrees: Degrees) -> None:
    """Build what the first and the last rank would hold and compare it with the parameter table."""
    for rank in sorted({0, prod(degrees.shape) - 1}):
        with fake_mesh(degrees, rank) as mesh:
            build_rank(config, mesh)


@contextmanager
def fake_mesh(degrees: Degrees, rank: int) -> Iterator[Mesh]:
    """The mesh as a rank would see it, its device being meta."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=prod(degrees.shape))
    try:
        made = Mesh.build(degrees, torch.device("cpu"))
        yield replace(made, device=torch.device("meta"))
    finally:
        dist.destroy_process_group()


def build_rank(config: Config, mesh: Mesh) -> None:
    """One rank's parts, schedule included, against the parameter table."""
    dtype = torch.bfloat16 if config.train.dtype == "bf16" else torch.float32
    device = torch.device("cpu" if config.engine.device == "cpu" else "cuda")
    attend = pick_attention(config.engine.attention, device, dtype)
    stages, pp_index = stage_map(config), mesh.index("pp")
    mine = [stages.parts[number] for number in stages.of_rank(pp_index)]
    built = build_parts(config, mesh, mine, dtype, attend)
    if mesh.degrees.pp > 1:
        Pipeline(config, mesh, stages, built)
    table, found = parameter_table(config.model), 0
    for name, parameter in table_parameters(built):
        expected = local_shard(table[name], mesh.degrees, mesh.index("tp")).shape
        assert tuple(parameter.shape) == expected, f"{name} is {parameter.shape}, not {expected}"
        found += parameter.numel()
    counted = RankState.of(config, mesh.degrees, pp_index).parameters
    assert found == counted, f"rank {mesh.rank} holds {found} parameters, not {counted}"
