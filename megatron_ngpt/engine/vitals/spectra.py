"""Condition numbers of all matrices and the cosines of the embeddings, on any topology.

A matrix is brought together one at a time and only as far as one tensor-parallel piece: the ranks
that hold parts of that piece send them to one of their number, matrix by matrix another one. As tp
never splits a vector, the Gram matrices [D, D] of the pieces add up to the matrix's own, whose
eigenvalues are the squared singular values. In fp64, so that condition numbers up to 1e7 hold.
Source of the figures: arXiv 2410.01131, figures 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.masters import Masters
from megatron_ngpt.engine.vitals.names import by_layer, digits, matrices
from megatron_ngpt.model.spec import ParameterSpec

ROWS = 512
"""Embeddings among which cosines are taken one by one, evenly spaced."""
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
EIGENVALUES = 33
_CHUNK = 4096
_LEAST = 1e-16


@dataclass(frozen=True)
class Piece:
    """One rank's tensor-parallel piece of a matrix, vectors as rows."""

    vectors: Tensor
    """Fp32 [vectors of the piece, D]."""
    first: int
    """Number of its first vector in the unsharded matrix."""


@torch.no_grad()
def spectra(masters: Masters) -> dict[str, Any]:
    """``condition`` by kind and layer, ``cosine`` and ``eigenvalues`` of embedding and head.

    ``cosine`` has mean and standard deviation over all pairs of different rows, and quantiles
    (:data:`QUANTILES`) over the pairs of ROWS of them. ``eigenvalues`` are those of the Gram matrix
    over their median, EIGENVALUES of them by per cent of the way from the smallest to the largest.
    Collective.
    """
    names = matrices(masters.table)
    tables = [n for n in names if masters.table[n].over_vocab]
    width = 1 + 2 + len(QUANTILES) + EIGENVALUES
    found = torch.zeros(len(names), width, dtype=torch.float64, device=masters.mesh.device)
    for name, piece in _pieces(masters, names):
        _look(masters, name, piece, found[names.index(name)], name in tables)
    dist.all_reduce(found)
    condition = zip(names, found[:, 0].tolist(), strict=True)
    told: dict[str, Any] = {"condition": by_layer(condition), "cosine": {}, "eigenvalues": {}}
    for name in tables:
        values = [digits(value) for value in found[names.index(name), 1:].tolist()]
        kind, last = name.partition(".")[0], 2 + len(QUANTILES)
        quantiles = dict(zip(map(str, QUANTILES), values[2:last], strict=True))
        told["cosine"][kind] = {"mean": values[0], "std": values[1], "quantiles": quantiles}
        shares = (f"{100 * n / (EIGENVALUES - 1):.0f}" for n in range(EIGENVALUES))
        told["eigenvalues"][kind] = dict(zip(shares, values[last:], strict=True))
    return told


def _pieces(masters: Masters, names: list[str]) -> Iterator[tuple[str, Piece]]:
    """The pieces that this rank works on, all ranks of a tp group the same; collective."""
    group, held = masters.mesh.replica_group, {f.spec.name for f in masters.fragments}
    for number, name in enumerate(name for name in names if name in held):
        turn, shard = number % group.size(), masters.shards[name]
        if not masters.sharded and group.rank() != turn:
            continue
        whole = torch.zeros(shard.shape, device=masters.mesh.device)
        for fragment, box in masters.boxes(name):
            at = [o - s for o, s in zip(box.offsets, shard.origin, strict=True)]
            window = tuple(slice(o, o + s) for o, s in zip(at, box.sizes, strict=True))
            whole[window] = box.view(fragment.master)
        if masters.sharded and group.size() > 1:
            dist.reduce(whole, dist.get_global_rank(group, turn), group=group)
        if group.rank() == turn:
            whole = whole[tuple(slice(size) for size in shard.real)]
            axis = masters.table[name].tp_dim
            assert axis is not None
            yield name, Piece(whole if axis == 0 else whole.T, shard.origin[axis])


def _look(masters: Masters, name: str, piece: Piece, out: Tensor, is_table: bool) -> None:
    """Write one matrix's figures into a row; collective over tp."""
    mesh, spec = masters.mesh, masters.table[name]
    gram = _summed(masters, _gram(piece.vectors))
    speaks = mesh.index("tp") == 0
    if speaks:
        eigenvalues = torch.linalg.eigvalsh(gram)[-min(spec.shape) :]
        most = eigenvalues[-1].clamp_min(1e-30)
        out[0] = (most / eigenvalues[0].clamp_min(most * _LEAST)).sqrt()
        if is_table:
            out[-EIGENVALUES:] = _spread(eigenvalues)
    if is_table:
        figures = _cosines(masters, spec, piece)
        if speaks:
            out[1 : 1 + len(figures)] = figures


def _cosines(masters: Masters, spec: ParameterSpec, piece: Piece) -> Tensor:
    """Mean, standard deviation and quantiles of different rows' cosines; collective over tp."""
    vectors, count = piece.vectors, spec.shape[0]
    if not masters.on_sphere:
        vectors = torch.nn.functional.normalize(vectors)
    total = _summed(masters, vectors.double().sum(0))
    gram, pairs = _summed(masters, _gram(vectors)), count * (count - 1)
    ones = gram.trace()
    mean = (total.square().sum() - ones) / pairs
    square = (gram.square().sum() - ones) / pairs
    some = _summed(masters, _some_rows(vectors, piece.first, count))
    which = torch.triu_indices(len(some), len(some), 1, device=some.device)
    cosines = (some @ some.T)[which[0], which[1]].sort().values
    at = torch.tensor(QUANTILES, device=cosines.device) * (len(cosines) - 1)
    return torch.cat((mean[None], (square - mean**2).clamp_min(0).sqrt()[None],
                      cosines[at.round().long()]))  # fmt: skip


def _some_rows(vectors: Tensor, first: int, count: int) -> Tensor:
    """The rows whose cosines are taken one by one, fp64 [rows, D]; those of other pieces are 0."""
    stride = -(-count // ROWS)
    found = vectors.new_zeros((-(-count // stride), vectors.shape[1]), dtype=torch.float64)
    at = -(-first // stride)
    mine = vectors[at * stride - first :: stride].double()
    found[at : at + len(mine)] = mine
    return found


def _gram(vectors: Tensor) -> Tensor:
    """Vectors' products summed, fp64 [D, D]."""
    gram = vectors.new_zeros((vectors.shape[1],) * 2, dtype=torch.float64)
    for some in vectors.split(_CHUNK):
        part = some.double()
        gram.addmm_(part.T, part)
    return gram


def _summed(masters: Masters, values: Tensor) -> Tensor:
    """Over the tensor-parallel pieces."""
    if masters.mesh.degrees.tp > 1:
        dist.all_reduce(values, group=masters.mesh.group("tp"))
    return values


def _spread(eigenvalues: Tensor) -> Tensor:
    """Some of them, over their median."""
    at = torch.linspace(0, len(eigenvalues) - 1, EIGENVALUES, device=eigenvalues.device)
    return eigenvalues[at.round().long()] / eigenvalues[len(eigenvalues) // 2].clamp_min(1e-30)
