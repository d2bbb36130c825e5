"""Which tokens of a sequence a context-parallel rank holds, and what they see: arithmetic only.

A ring of R groups cuts a sequence into 2 R chunks; group r holds chunks r and 2 R - 1 - r, so that
all have the same share of causal attention. The ranks of a group (Ulysses) hold consecutive parts
of these two. Without a ring that is one consecutive part of the sequence for each rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.partial import Tile


def places(length: int, degrees: Degrees, cp_index: int) -> Tensor:
    """Places in the whole sequence of a rank's tokens, in its order: int64 [length / cp].

    Raises:
        ValueError: the ranks cannot share so many tokens.
    """
    unit = 2 * degrees.ring * degrees.ulysses if degrees.ring > 1 else degrees.cp
    if length % degrees.cp or (degrees.ring > 1 and length % (2 * degrees.ring)):
        raise ValueError(
            f"a sequence of {length} tokens cannot be shared by cp = {degrees.cp} ranks with "
            f"ulysses = {degrees.ulysses}: make its length a multiple of {unit}"
        )
    group, place = divmod(cp_index, degrees.ulysses)
    if degrees.ring == 1:
        return torch.arange(length).chunk(degrees.ulysses)[place]
    chunks = torch.arange(length).chunk(2 * degrees.ring)
    both = torch.cat([chunks[group], chunks[2 * degrees.ring - 1 - group]])
    return both.chunk(degrees.ulysses)[place]


def tiles(
    mine: int, theirs: int, ring: int, length: int, documents: Documents | None
) -> Iterator[Tile]:
    """What the queries of one group of a ring see of the keys of another, without overlap.

    Args:
        mine: group of the queries.
        theirs: group of the keys.
        ring: number of groups.
        length: tokens of the whole sequence.
        documents: of the whole sequences; None for one document each.
    """
    chunk = length // (2 * ring)
    every, whole, half = slice(None), slice(0, 2 * chunk), slice(0, chunk)
    if documents is not None:
        yield from _within_documents(mine, theirs, ring, chunk, documents)
    elif mine == theirs:
        yield Tile(every, whole, whole, causal=True)
    elif theirs < mine:
        yield Tile(every, whole, half)  # their second chunk comes after both of ours
    else:
        yield Tile(every, slice(chunk, 2 * chunk), whole)


def _within_documents(
    mine: int, theirs: int, ring: int, chunk: int, documents: Documents
) -> Iterator[Tile]:
    """Documents inside a chunk are causal; one that comes from an earlier chunk sees all of it."""
    last = 2 * ring - 1
    for i, queries in enumerate((mine, last - mine)):
        for j, keys in enumerate((theirs, last - theirs)):
            if keys > queries:
                continue
            for row, start, stop in documents:
                q = _inside(start, stop, queries * chunk, i * chunk, chunk)
                k = _inside(start, stop, keys * chunk, j * chunk, chunk)
                if q.start < q.stop and k.start < k.stop:
                    yield Tile(slice(row, row + 1), q, k, causal=keys == queries)


def _inside(start: int, stop: int, first: int, local: int, size: int) -> slice:
    """The part of tokens start..stop in the chunk that begins at ``first``, in local places."""
    here = (min(max(place - first, 0), size) + local for place in (start, stop))
    return slice(*here)
