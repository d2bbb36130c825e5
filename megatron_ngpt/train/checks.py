"""Checks of a running engine: are copies still copies, and is the sphere still a sphere.

Cost: every rank reads its weights and its masters once. It sends 16 bytes per parameter tensor over
dp and over tp, 4 bytes per unit vector over dp (the projection's sums) and 8 bytes over all ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.parallel.apply import table_parameters
from megatron_ngpt.run.failed import ReplicasDiffer

_BITS = {2: torch.int16, 4: torch.int32}  # integers as wide as a value


class Difference(NamedTuple):
    """A parameter that is not the same on all ranks of one group."""

    name: str
    axis: str
    ranks: tuple[int, ...]
    """The group."""


def check(engine: Engine) -> dict[str, float]:
    """``unit_error``, the largest | |v| - 1 | over all unit vectors; nothing for gpt. Collective.

    Raises:
        ReplicasDiffer: on every rank, when any two ranks differ.
    """
    projections = engine.masters.projections.values()
    error = torch.stack([projection.error() for projection in projections]).max()
    mine = dict(_differences(engine))
    worst = torch.stack((error, torch.full_like(error, float(len(mine)))))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    if worst[1] > 0:
        raise ReplicasDiffer(_report(mine))
    return {"unit_error": float(worst[0])} if engine.config.model.is_ngpt else {}


def _differences(engine: Engine) -> Iterator[tuple[Difference, int]]:
    """What differs in this rank's groups, with this rank's own hash; collective over dp and tp."""
    for axis, group, held in _replicas(engine):
        hashes = torch.stack([_hash(values) for _, values in held])
        extremes = torch.stack((hashes, ~hashes))  # the largest ~x is ~ of the smallest x
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
        ranks = tuple(dist.get_process_group_ranks(group))
        for index in (extremes[0] != ~extremes[1]).nonzero().flatten().tolist():
            yield Difference(held[index][0], axis, ranks), int(hashes[index])


def _replicas(
    engine: Engine,
) -> Iterator[tuple[str, dist.ProcessGroup, list[tuple[str, Tensor]]]]:
    """Parameters that are held alike along dp and cp, then those along tp.

    ZeRO-3 holds nothing alike along dp and cp, and along tp the same pieces of the same parameters.
    """
    degrees = engine.mesh.degrees
    if engine.config.optim.zero_stage < 3:
        held = [(name, p.data) for name, p in table_parameters(engine.deepspeed.module)]
        if degrees.replicas > 1:
            yield ("dp" if degrees.cp == 1 else "dp and cp"), engine.mesh.replica_group, held
    else:
        held = [(f.spec.name, f.master) for f in engine.masters.fragments]
    if degrees.tp > 1:
        copied = [(name, values) for name, values in held if engine.shards[name].replicated]
        yield "tp", engine.mesh.group("tp"), copied


def _hash(values: Tensor) -> Tensor:
    """Sum of the bits, read as integers: any single value that changes changes it."""
    return values.contiguous().view(_BITS[values.element_size()]).sum(dtype=torch.int64)


def _report(mine: dict[Difference, int]) -> str:
    """Every parameter that differs and the ranks that are not like most of theirs; collective."""
    everyone: list[dict[Difference, int]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    lines = []
    for found in sorted({difference for theirs in everyone for difference in theirs}):
        hashes = {rank: everyone[rank][found] for rank in found.ranks}
        usual, count = Counter(hashes.values()).most_common(1)[0]
        odd = [rank for rank, value in hashes.items() if value != usual]
        who = f"on rank {', '.join(map(str, odd))}" if count > 1 else "on every one"
        lines.append(f"  {found.name} {who} of the {found.axis} group {list(found.ranks)}")
    return (
        "a parameter is not the same where it must be; its values since the last check cannot be "
        "trusted, resume from a checkpoint before it:\n" + "\n".join(lines)
    )
