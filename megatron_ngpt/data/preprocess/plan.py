"""The input cut into shards, a pure function of the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_ngpt.data.sources import Piece, Source


@dataclass(frozen=True)
class Shard:
    """What one process encodes at a time, and writes as a pair of its own."""

    number: int
    """Its place in the order of the input."""

    pieces: tuple[Piece, ...]

    size: int
    """Bytes on disk."""


def plan_shards(sources: Sequence[Source], split: bool, shard_bytes: int) -> list[Shard]:
    """Cut an input into shards of about equal size.

    Args:
        sources: the files in order.
        split: whether a file may be cut between lines.
        shard_bytes: bytes that a shard does not exceed, except by a file that cannot be cut.
    """
    shards: list[Shard] = []
    pieces: list[Piece] = []
    size = 0
    for piece, count in _pieces(sources, split, shard_bytes):
        if pieces and size + count > shard_bytes:
            shards.append(Shard(len(shards), tuple(pieces), size))
            pieces, size = [], 0
        pieces.append(piece)
        size += count
    return [*shards, Shard(len(shards), tuple(pieces), size)]


def _pieces(
    sources: Sequence[Source], split: bool, shard_bytes: int
) -> Iterator[tuple[Piece, int]]:
    """Pieces, and the bytes of each."""
    for source in sources:
        if not (split and source.seekable and source.size > shard_bytes):
            yield Piece(source.path), source.size
            continue
        for start in range(0, source.size, shard_bytes):
            stop = start + shard_bytes
            last = stop >= source.size
            yield (
                Piece(source.path, start, None if last else stop),
                min(stop, source.size) - start,
            )
