"""Context parallelism: ranks that share every sequence, each with T / cp of its tokens.

Only attention looks at other tokens, so only the function that the model calls for it is replaced;
positions are handed to the model. Ulysses (arXiv 2309.14509) exchanges tokens for heads around
attention; a ring (parallel/ring.py) passes keys and values on; both together are Ulysses inside the
groups that form the ring (arXiv 2405.07719), for more ranks than there are key heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.config import IGNORED, Config
from megatron_ngpt.mesh.collectives import all_gather_tokens, exchange
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.ops.attention import HALF, Attend
from megatron_ngpt.ops.documents import Documents, first_tokens, targets_within
from megatron_ngpt.parallel.ring import RingAttention
from megatron_ngpt.parallel.zigzag import places


def context_attention(mesh: Mesh, attend: Attend, dtype: torch.dtype) -> Attend:
    """What the model calls for attention on a rank of this mesh.

    Args:
        mesh: its axis cp shares the tokens.
        attend: attention over whole sequences on one device.
        dtype: of activations.

    Raises:
        ValueError: a ring on a GPU in fp32, for which torch has no kernel that tells its sums.
    """
    if mesh.degrees.ring > 1 and mesh.device.type == "cuda" and dtype not in HALF:
        raise ValueError(
            f"parallel.ulysses = {mesh.degrees.ulysses} of parallel.cp = {mesh.degrees.cp}: ring "
            "attention on GPUs needs train.dtype = bf16: set it, or parallel.ulysses to 0"
        )
    inner = RingAttention(mesh.ring_group) if mesh.degrees.ring > 1 else attend
    return Ulysses(mesh.ulysses_group, inner) if mesh.degrees.ulysses > 1 else inner


@dataclass(frozen=True)
class Ulysses:
    """Attention to all tokens of a group's ranks, each rank doing some of the heads.

    One exchange takes queries, keys and values there and one the results back. Shapes as in
    ``ops.attention.Attend``, T and S being the rank's own tokens.
    """

    group: dist.ProcessGroup
    inner: Attend

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, documents: Documents | None = None, /
    ) -> Tensor:
        """This rank's queries with the keys of all ranks up to their place."""
        n = self.group.size()
        split = [x.unflatten(2, (n, -1)) for x in (q, k, v)]  # [B, t, n, heads / n, H]
        flat = [x.flatten(3) for x in split]
        theirs = exchange(torch.cat(flat, dim=-1).movedim(2, 0), self.group)
        joined = theirs.movedim(0, 1).flatten(1, 2)  # [B, n t, ...] in the order of tokens
        parts = joined.split([x.shape[-1] for x in flat], dim=-1)
        mine = (p.unflatten(-1, x.shape[3:]) for p, x in zip(parts, split, strict=True))
        q, k, v = mine
        out = self.inner(q, k, v, scale, documents).unflatten(1, (n, -1))
        back = exchange(out.movedim(1, 0), self.group)  # [n, B, t, heads / n, H]
        return back.movedim(0, 2).flatten(2, 3)


class Inputs(NamedTuple):
    """What a rank's model is given; [..., T / cp] unless stated."""

    tokens: Tensor
    targets: Tensor | None
    positions: Tensor | None = None
    """None where they count from 0 to T - 1."""
    first: Tensor | None = None
    """Where each token's document begins, of the whole sequences [..., T]; None without
    documents."""


def shared_inputs(config: Config, mesh: Mesh, tokens: Tensor, targets: Tensor | None) -> Inputs:
    """This rank's part of whole sequences.

    Args:
        config: says whether documents are kept apart, and which id ends one.
        mesh: its axis cp shares the tokens.
        tokens: ids [..., T], the same on ranks that differ in cp.
        targets: the ids that follow them, same shape; :data:`IGNORED` after a document's end.

    Raises:
        ValueError: the ranks cannot share so many tokens.
    """
    data, first = config.data, None
    if data.document_mask:
        ends = tokens == data.eod
        if targets is not None:
            targets = targets_within(tokens, targets, data.eod)
            ends = targets == IGNORED
        first = first_tokens(ends)
    if first is None and mesh.degrees.cp == 1:
        return Inputs(tokens, targets)
    mine = places(tokens.shape[-1], mesh.degrees, mesh.index("cp")).to(tokens.device)
    positions = mine.expand(*tokens.shape[:-1], -1)
    return Inputs(
        tokens[..., mine],
        None if targets is None else targets[..., mine],
        positions if first is None else positions - first[..., mine],
        first,
    )


def micro_batches(inputs: Inputs) -> Iterator[Inputs]:
    """Inputs [accumulation, ...] one micro-batch at a time."""
    for number in range(len(inputs.tokens)):
        yield Inputs._make(None if x is None else x[number] for x in inputs)


def gather_sequences(x: Tensor, mesh: Mesh) -> Tensor:
    """[B, T / cp, ...] of every rank -> [B, T, ...] in the order of the sequence; no gradients."""
    degrees = mesh.degrees
    if degrees.cp == 1:
        return x
    gathered = all_gather_tokens(x, mesh.group("cp"))
    order = [places(gathered.shape[1], degrees, rank) for rank in range(degrees.cp)]
    return gathered[:, torch.cat(order).argsort().to(x.device)]
