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

    @classmethod
    def build(cls, degrees: Degrees, device: torch.device) -> Mesh:
        """Create the process groups of every axis (collective over all ranks)."""
        made = init_device_mesh(device.type, degrees.shape, mesh_dim_names=AXES)
        model_group = _model_group(degrees)
        return cls(degrees=degrees, device=device, device_mesh=made, model_group=model_group)

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


def _model_group(degrees: Degrees) -> dist.ProcessGroup:
    """The group of this rank; every rank takes part in making every group."""
    members: dict[tuple[int, int], list[int]] = {}
    for rank in range(dist.get_world_size()):
        at = degrees.coordinates(rank)
        members.setdefault((at["dp"], at["cp"]), []).append(rank)
    mine = None
    for ranks in members.values():
        group = dist.new_group(ranks)
        mine = group if dist.get_rank() in ranks else mine
    assert mine is not None
    return mine
