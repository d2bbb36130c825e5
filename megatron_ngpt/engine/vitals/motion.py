"""How far a step turns the vectors of each matrix, and the gradient that asked for it.

Some vectors of each matrix are remembered before the optimizer's step and looked at after the
projection: at most SAMPLE, evenly spaced, the same ones on every topology. Each rank adds up the
parts of the pieces that it holds, as the projection does. All vectors have the model's width, so
the pieces lie as rows in one table, and a few operations do for all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_ngpt.engine.angle import CappedProjection
from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.masters import Masters
from megatron_ngpt.engine.vitals.names import digits, kind_of, kinds, matrices
from megatron_ngpt.engine.zero import inner_optimizer

SAMPLE = 64
"""Vectors of each matrix."""


class Piece(NamedTuple):
    """What a rank holds of some sampled vectors."""

    values: Tensor
    """Fp32 view of a master, [vectors, width or less]."""
    rows: slice
    """Where it lies in the table of this rank."""
    columns: slice


class Motion:
    """Watches the optimizer's next step when told to.

    Args:
        masters: this rank's; its projection runs before what is done here after a step.
    """

    def __init__(self, masters: Masters) -> None:
        self.masters, self.table = masters, masters.table
        self.matrices, self.kinds = matrices(self.table), kinds(self.table)
        self.pieces: dict[int, list[Piece]] = {}
        self.numbers: list[int] = []  # of the sampled vector in each row, over all matrices
        self.gradients: dict[int, list[tuple[Fragment, int]]] = {}
        for fragment in masters.fragments:
            if fragment.length and masters.counts(fragment.spec.name):
                kind = self.kinds.index(kind_of(fragment.spec.name)[0])
                self.gradients.setdefault(fragment.group, []).append((fragment, kind))
                if len(fragment.spec.shape) == 2:
                    self._sample(fragment)
        embed = self.table["embed.weight"]  # its rows are as long as all other vectors
        self.width, self.expected, self.stepped = embed.shape[1], False, False
        optimizer = inner_optimizer(masters.deepspeed)
        optimizer.register_step_pre_hook(self._look_before)
        optimizer.register_step_post_hook(self._look_after)

    def _sample(self, fragment: Fragment) -> None:
        """Note which sampled vectors each rectangle of a fragment holds pieces of."""
        axis = fragment.spec.tp_dim  # the dimension that counts the vectors
        assert axis is not None
        at, stride = self.matrices.index(fragment.spec.name), spacing(fragment.spec.shape[axis])
        for box in fragment.rectangles():
            first = -(-box.offsets[axis] // stride)
            values = box.view(fragment.master)
            values = (values if axis == 0 else values.T)[
                first * stride - box.offsets[axis] :: stride
            ]
            rows = slice(len(self.numbers), len(self.numbers) + len(values))
            begin = box.offsets[1 - axis]
            columns = slice(begin, begin + box.sizes[1 - axis])
            self.pieces.setdefault(fragment.group, []).append(Piece(values, rows, columns))
            self.numbers += range(at * SAMPLE + first, at * SAMPLE + first + len(values))

    def expect(self) -> None:
        """Watch the next step."""
        device = self.masters.mesh.device
        # |d|^2, w . d and |w|^2 of every sampled vector w that moves by d
        self.sums = torch.zeros(3, len(self.matrices) * SAMPLE, dtype=torch.float64, device=device)
        self.squares = self.sums.new_zeros(len(self.kinds))  # of the clipped gradient
        self.stretch = self.sums.new_zeros(())
        self.old = torch.zeros(len(self.numbers), self.width, device=device)
        self.moved = torch.zeros_like(self.old)
        self.expected, self.stepped = True, False

    def _groups(self, optimizer: torch.optim.Optimizer) -> set[int]:
        flats = [id(p) for g in optimizer.param_groups for p in g["params"]]
        return {self.masters.numbers[i] for i in flats if i in self.masters.numbers}

    @torch.no_grad()
    def _look_before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self.expected:
            return
        for number in self._groups(optimizer):
            for piece in self.pieces.get(number, []):
                self.old[piece.rows, piece.columns] = piece.values
            known = [
                (fragment.of(fragment.flat.grad), kind)
                for fragment, kind in self.gradients.get(number, [])
                if fragment.flat.grad is not None
            ]
            if known:
                norms = torch.stack(list(torch._foreach_norm([grad for grad, _ in known])))
                where = torch.tensor([kind for _, kind in known], device=norms.device)
                self.squares.index_add_(0, where, norms.double().square())

    @torch.no_grad()
    def _look_after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self.expected:
            return
        self.stepped = True
        for number in self._groups(optimizer):
            self._add_stretch(number)
            for piece in self.pieces.get(number, []):
                self.moved[piece.rows, piece.columns] = piece.values

    def _add_stretch(self, number: int) -> None:
        """How far from 1 the projection found the lengths."""
        projection = self.masters.projections[number]
        if projection.vectors:
            squares = projection.squares
            if isinstance(projection, CappedProjection):
                squares = projection.sums[2]
            found = squares.double().sqrt()
            off = torch.where(found > 0, (found - 1).abs(), 0.0).max()  # 0 is tp's padding
            self.stretch = torch.maximum(self.stretch, off)

    @torch.no_grad()
    def add_up(self) -> None:
        """Finish ``sums`` of this rank, after the step."""
        moved, old = self.moved.sub_(self.old), self.old
        parts = [moved.square().sum(1), (old * moved).sum(1), old.square().sum(1)]
        where = torch.tensor(self.numbers, dtype=torch.long, device=old.device)
        self.sums.index_add_(1, where, torch.stack(parts).double())
        del self.old, self.moved

    def told(self, grad_norm: float, stretch: float) -> dict[str, Any]:
        """What the step did, once ``sums`` and ``squares`` are those of all ranks.

        Args:
            grad_norm: of the step, before clipping; its parts add up to it.
            stretch: the largest of all ranks.
        """
        moved, along, length = self.sums.view(3, len(self.matrices), SAMPLE)
        side = (moved * length - along.square()).clamp_min(0).sqrt()
        angles = torch.atan2(side, length + along)
        # clipping made all of them smaller by one factor
        norms = self.squares.sqrt() * (grad_norm / self.squares.sum().sqrt().clamp_min(1e-30))
        pairs = zip(self.kinds, norms.tolist(), strict=True)
        told = {"angle": self._by_kind(angles, length > 0)}
        told["gradient"] = {kind: digits(norm) for kind, norm in pairs}
        if not self.masters.on_sphere:
            return told
        off = ((length + 2 * along + moved).sqrt() - 1).abs()[length > 0].max()
        return told | {"stretch": digits(stretch), "unit_error": digits(float(off))}

    def _by_kind(self, angles: Tensor, real: Tensor) -> dict[str, Any]:
        """Mean and largest angle over the vectors of all matrices of a kind."""
        angles = torch.where(real, angles, 0.0)
        columns = torch.stack((angles.sum(1), real.sum(1), angles.amax(1))).T.tolist()
        found: dict[str, list[list[float]]] = {}
        for name, row in zip(self.matrices, columns, strict=True):
            found.setdefault(kind_of(name)[0], []).append(row)
        return {
            kind: {
                "mean": digits(sum(row[0] for row in rows) / max(1, sum(row[1] for row in rows))),
                "max": digits(max(row[2] for row in rows)),
            }
            for kind, rows in found.items()
        }


def spacing(count: int) -> int:
    """Distance of the vectors that are looked at, of so many."""
    return -(-count // SAMPLE)
