"""The fp32 master weights of one rank: where they lie, how they start, how they stay unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine import zero
from megatron_ngpt.engine.angle import CappedProjection
from megatron_ngpt.engine.checksums import Checksums
from megatron_ngpt.engine.fragment import Fragment, Rectangle
from megatron_ngpt.engine.fused_adamw import NONE, FusedAdamW, Piece
from megatron_ngpt.engine.projection import Projection
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.initial import initial_box
from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.parallel.apply import table_parameters
from megatron_ngpt.parallel.shard import Shard


class Masters:
    """This rank's fragments of the unsharded parameters, whatever tp, pp and ZeRO stage.

    Args:
        deepspeed: engine that owns them, DeepSpeed's or ours.
        mesh: where the ranks are.
        table: every parameter of the unsharded model.
        shards: the tensor-parallel piece of each.
        angle_cap: largest angle by which a step turns a vector; 0 means none.
        check_bits: whether to look for flipped bits at each step.

    Attributes:
        flipped: vectors on this rank in which steps have found a flipped bit, with what they are of
            (engine/checksums.py).
    """

    def __init__(
        self,
        deepspeed: Any,
        mesh: Mesh,
        table: Mapping[str, ParameterSpec],
        shards: Mapping[str, Shard],
        angle_cap: float = 0.0,
        check_bits: bool = False,
    ) -> None:
        self.flipped: list[str] = []
        self.deepspeed, self.mesh, self.table, self.shards = deepspeed, mesh, table, shards
        self.sharded = deepspeed.zero_optimization_stage() > 0
        self.fragments = zero.fragments(deepspeed, table, shards)
        # without ZeRO every rank holds whole vectors and nothing needs adding up
        group = mesh.replica_group if self.sharded else None
        make = partial(CappedProjection, cap=angle_cap) if angle_cap else Projection
        self.projections = {n: make(fragments, group) for n, fragments in self._by_group().items()}
        self.numbers = {id(f.flat): f.group for f in self.fragments}
        optimizer = zero.inner_optimizer(deepspeed)
        fused = isinstance(optimizer, FusedAdamW) and not angle_cap
        for projection in self.projections.values():
            projection.fused = fused
        self.checksums = {p: Checksums(p) for p in self.projections.values() if check_bits}
        if angle_cap:
            optimizer.register_step_pre_hook(self._remember)
        elif isinstance(optimizer, FusedAdamW):
            optimizer.pieces = self._pieces()
            optimizer.register_step_pre_hook(self._expect_sums)
        optimizer.register_step_pre_hook(self._expect_bits)
        # after the update of the masters and before any copy is made from them
        optimizer.register_step_post_hook(self._project)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> Iterator[Projection]:
        """The projections of what an optimizer steps now."""
        flats = [id(p) for g in optimizer.param_groups for p in g["params"]]
        for number in sorted({self.numbers[i] for i in flats if i in self.numbers}):
            yield self.projections[number]

    def _remember(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for projection in self._stepped(optimizer):
            assert isinstance(projection, CappedProjection)
            projection.remember()

    def _pieces(self) -> dict[int, list[Piece]]:
        """What the optimizer goes through, and where it leaves sums of squares."""
        found: dict[int, list[Piece]] = {}

        def add(flat: Tensor, values: Tensor, dim: int, *sums: Tensor | None) -> None:
            offset = int(values.storage_offset() - flat.storage_offset())
            found.setdefault(id(flat), []).append(Piece.of(values, offset, dim, *sums))

        for projection in self.projections.values():
            checks = self.checksums.get(projection)
            for flat, piece in zip(projection.flats, projection.pieces, strict=True):
                values, dim, where = piece
                bits = checks.found[where] if checks else None
                add(flat, values, dim, projection.squares[where], bits)
        for fragment in self.fragments:
            if fragment.spec.norm_dim is None:
                for box in fragment.rectangles():
                    add(fragment.flat, box.view(fragment.master), NONE, None)
        return found

    def _expect_sums(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The step to come adds up squares, unless it leaves something out."""
        whole = all(p.grad is not None for g in optimizer.param_groups for p in g["params"])
        for projection in self._stepped(optimizer):
            projection.squares.zero_()
            projection.summed = whole

    def _expect_bits(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look for flipped bits before the step to come, or let it add them up."""
        for projection in self._stepped(optimizer):
            if checks := self.checksums.get(projection):
                self.flipped += checks.begin(projection.fused and projection.summed)

    def _project(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for projection in self._stepped(optimizer):
            checks = self.checksums.get(projection)
            if checks:
                self.flipped += checks.stepped()
            projection()
            if checks:
                checks.projected()

    def look_for_flips(self) -> None:
        """Note flipped bits now, without waiting for the next step."""
        for checks in self.checksums.values():
            self.flipped += checks.look()

    def _by_group(self) -> dict[int, list[Fragment]]:
        found: dict[int, list[Fragment]] = {}
        for fragment in self.fragments:
            found.setdefault(fragment.group, []).append(fragment)
        return dict(sorted(found.items()))

    def cap_angles(self, cap: float) -> None:
        """Change the largest angle of the steps to come, where there is one at all."""
        for projection in self.projections.values():
            if isinstance(projection, CappedProjection):
                projection.cap = cap

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Initial weights, written to the masters so that they are the same on every topology."""
        for fragment in self.fragments:
            fragment.flat.data.zero_()  # padding, too, that no fragment covers
        for fragment, box in self.boxes():
            drawn = initial_box(fragment.spec, seed, box.offsets, box.sizes)
            box.view(fragment.master).copy_(drawn)
        for projection in self.projections.values():
            projection.alike()
        self.changed()

    @torch.no_grad()
    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Take over whole unsharded parameters by name, every one of the table; collective."""
        for fragment, box in self.boxes():
            box.view(fragment.master).copy_(_crop(values[fragment.spec.name], box))
        self.changed()

    def changed(self) -> None:
        """Bring every copy in line after masters were written; collective."""
        for checks in self.checksums.values():
            checks.take()
        zero.refresh_copies(self.deepspeed)

    @torch.no_grad()
    def full_weight(self, name: str) -> Tensor:
        """One whole unsharded fp32 parameter, put together from the masters; collective."""
        whole = torch.zeros(self.table[name].shape, device=self.mesh.device)
        if self.counts(name):
            for fragment, box in self.boxes(name):
                _crop(whole, box).copy_(box.view(fragment.master))
        dist.all_reduce(whole)
        return whole

    @torch.no_grad()
    def full_gradient(self, name: str) -> Tensor:
        """One whole averaged fp32 gradient, between backward and the step; collective."""
        whole = torch.zeros(self.table[name].shape, device=self.mesh.device)
        for own_name, parameter in table_parameters(self.deepspeed.module):
            if own_name == name:
                piece, shard = zero.full_gradient(self.deepspeed, parameter), self.shards[name]
                piece = piece.reshape(shard.shape)[tuple(slice(size) for size in shard.real)]
                if self._speaks_for(name):
                    _crop(whole, Rectangle(shard.origin, shard.real, 0, 0)).copy_(piece)
        dist.all_reduce(whole, group=self.mesh.model_group)
        return whole

    def boxes(self, name: str = "") -> Iterator[tuple[Fragment, Rectangle]]:
        """The rectangles that this rank holds, of all parameters or of one."""
        for fragment in self.fragments:
            if not name or fragment.spec.name == name:
                for box in fragment.rectangles():
                    yield fragment, box

    def counts(self, name: str) -> bool:
        """Whether a sum over all ranks takes this rank's fragments, so that each value is in it
        once."""
        alone = self.sharded or self.mesh.replica_group.rank() == 0
        return self._speaks_for(name) and alone

    @property
    def on_sphere(self) -> bool:
        """Whether the vectors of matrices have length 1."""
        matrices = [spec for spec in self.table.values() if len(spec.shape) == 2]
        return all(s.norm_dim is not None and s.groups == 1 and not s.slack for s in matrices)

    def _speaks_for(self, name: str) -> bool:
        """Whether this rank's copy counts: of replicated parameters the first tp rank's does."""
        return not self.shards[name].replicated or self.mesh.index("tp") == 0


def _crop(whole: Tensor, box: Rectangle) -> Tensor:
    """The view of an unsharded parameter that a rectangle covers."""
    return whole[tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))]
