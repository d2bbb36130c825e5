"""The mesh: one process group per axis, built once and handed to whoever needs it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from megatron_ngpt.mesh.degrees import AXES, Degrees


@dataclass(frozen=True)
class Mesh:
    """Axes pp, dp, cp, tp over all ranks, and this rank's place in them."""

    degrees: Degrees
    device: torch.device
    device_mesh: DeviceMesh
    model_group: dist.ProcessGroup
    """Ranks that together hold one copy of the model: axes pp and tp."""

    replica_group: dist.ProcessGroup
    """Ranks that hold the same parameters and see other tokens: axes dp and cp."""

    ulysses_group: dist.ProcessGroup
    """Ranks of a cp group that exchange heads."""

    ring_group: dist.ProcessGroup
    """Ranks of a cp group that pass keys and values round."""

    @classmethod
    def build(cls, degrees: Degrees, device: torch.device) -> Mesh:
        """Create the process groups of every axis (collective over all ranks)."""
        made = init_device_mesh(device.type, degrees.shape, mesh_dim_names=AXES)
        dp, cp = made.get_group("dp"), made.get_group("cp")
        both = degrees.dp > 1 and degrees.cp > 1
        mixed = degrees.ring > 1 and degrees.ulysses > 1
        return cls(
            degrees=degrees,
            device=device,
            device_mesh=made,
            model_group=_group(degrees, "pp", "tp"),
            replica_group=_group(degrees, "dp", "ring", "ulysses")
            if both
            else cp
            if degrees.cp > 1
            else dp,
            ulysses_group=_group(degrees, "ulysses") if mixed else cp,
            ring_group=_group(degrees, "ring") if mixed else cp,
        )

    def group(self, axis: str) -> dist.ProcessGroup:
        """Process group of the ranks that differ from this one in this axis only."""
        return self.device_mesh.get_group(axis)

    def index(self, axis: str) -> int:
        """This rank's place along an axis."""
        return self.device_mesh.get_local_rank(axis)

    @property
    def rank(self) -> int:
        """Global rank."""
        return dist.get_rank()


def _group(degrees: Degrees, *axes: str) -> dist.ProcessGroup:
    """Ranks that differ from this one in these axes only; all take part in making every group.

    Axis cp goes by its two parts, ring and ulysses.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for rank in range(dist.get_world_size()):
        at = degrees.coordinates(rank)
        at["ring"], at["ulysses"] = divmod(at.pop("cp"), degrees.ulysses)
        fixed = tuple(place for axis, place in at.items() if axis not in axes)
        members.setdefault(fixed, []).append(rank)
    mine = None
    for ranks in members.values():
        group = dist.new_group(ranks)
        mine = group if dist.get_rank() in ranks else mine
    assert mine is not None
    return mine
