"""What the sharded projection is measured against: gather whole matrices, normalise all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.ops.hypersphere import unit


class GatherAndNormalise:
    """Every rank all-gathers the fp32 masters, normalises every whole matrix, keeps its own piece.

    One all-gather per flat buffer of the optimizer, which is as few as it can be. The same result
    as the sharded projection, up to rounding.
    """

    def __init__(self, engine: Engine) -> None:
        self.group = engine.mesh.group("dp")
        ranks = engine.mesh.degrees.dp
        self.fragments = [f for f in engine.masters.fragments if f.spec.norm_dim is not None]
        mine = [(f.offset, f.length) for f in self.fragments]
        self.pieces: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        dist.all_gather_object(self.pieces, mine, group=self.group)
        self.flats = {f.group: f.flat for f in self.fragments}
        self.gathered = {n: flat.new_empty(ranks, flat.numel()) for n, flat in self.flats.items()}

    @torch.no_grad()
    def __call__(self) -> None:
        """Collective over the data-parallel group."""
        for number, flat in self.flats.items():
            into = self.gathered[number].view(-1)
            dist.all_gather_into_tensor(into, flat.detach().reshape(-1), group=self.group)
        for number, fragment in enumerate(self.fragments):
            assert fragment.spec.norm_dim is not None
            whole = unit(self._whole(number, fragment), fragment.spec.norm_dim).view(-1)
            fragment.master.copy_(whole[fragment.start : fragment.start + fragment.length])

    def _whole(self, number: int, fragment: Fragment) -> Tensor:
        rows = self.gathered[fragment.group]
        where = [pieces[number] for pieces in self.pieces]
        parts = [row[at : at + n] for row, (at, n) in zip(rows, where, strict=True)]
        return torch.cat(parts).view(fragment.shard.shape)
