"""Finished pairs put together at known places of one pair, by any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_ngpt.data.indexed.files import Stretch, copy_bytes, crc32_combined, publish, write_at
from megatron_ngpt.data.indexed.format import HEADER_SIZE, LENGTH, OFFSET, Header, pair
from megatron_ngpt.data.indexed.reader import IndexedDataset, chunks


class Part(NamedTuple):
    """A finished pair that becomes a stretch of another."""

    prefix: str
    sequences: int
    documents: int
    tokens: int
    crc: int
    """CRC-32 of its .bin, reckoned when it was written."""
    largest_id: int


class Assembly:
    """Pairs joined in their order into PREFIX.bin and PREFIX.idx, as a single writer would write.

    One process calls ``begin``, then any number of them ``copy``, which copies each byte of tokens
    once, within the kernel where the file system can; then the first calls ``finish``.

    Args:
        prefix: of the pair.
        dtype: type of one token in all of them.
        parts: the pairs in order.

    Attributes:
        prefix, dtype, document_count, token_count, largest_id, checksums: as of an
            ``IndexedWriter``.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype, parts: Sequence[Part]) -> None:
        self.prefix, self.dtype, self._parts = str(prefix), dtype, parts
        self.checksums: dict[str, str] = {}
        self.largest_id = max(part.largest_id for part in parts)
        counts = np.array([part[1:4] for part in parts], np.int64)
        ends = np.cumsum(counts, axis=0)
        self._before: list[list[int]] = (ends - counts).tolist()
        sequences, self.document_count, self.token_count = ends[-1].tolist()
        self._header = Header(dtype, sequences, self.document_count)
        self._sizes = self.token_count * dtype.itemsize, self._header.idx_size
        self._temporaries = [Path(f"{path}.tmp") for path in pair(prefix)]

    def begin(self) -> None:
        """Make both files in their full sizes, under temporary names."""
        for path, size in zip(self._temporaries, self._sizes, strict=True):
            with path.open("wb") as file:
                file.truncate(size)

    def copy(self, numbers: Iterable[int], threads: int) -> list[Stretch]:
        """Put parts in their places, and sync what was written.

        Args:
            numbers: which parts.
            threads: parts copied at a time.

        Raises:
            ValueError: when a part is not what it was when it was finished.
        """
        files = [os.open(path, os.O_WRONLY) for path in self._temporaries]
        try:
            with ThreadPoolExecutor(threads) as pool:
                copied = pool.map(partial(self._copy, *files), numbers)
                found = [stretch for each in copied for stretch in each]
            for file in files:
                os.fsync(file)
        finally:
            for file in files:
                os.close(file)
        return found

    def finish(self, stretches: Iterable[Stretch]) -> None:
        """Complete the index and give both files their names.

        Args:
            stretches: all that ``copy`` has returned, anywhere, in any order.
        """
        with self._temporaries[1].open("r+b", buffering=0) as index:
            first = self._header.document_index_offset
            ends = [
                write_at(index.fileno(), ".idx", 0, [np.frombuffer(self._header.pack(), "u1")]),
                write_at(index.fileno(), ".idx", first, [np.zeros(1, OFFSET)]),
            ]
            os.fsync(index.fileno())
        every = sorted([*stretches, *ends])
        for suffix, size in zip((".bin", ".idx"), self._sizes, strict=True):
            mine = [stretch for stretch in every if stretch.suffix == suffix]
            self.checksums[suffix] = crc32_combined(mine, size)
        publish(self._temporaries, pair(self.prefix))

    def abandon(self) -> None:
        """Remove what is unfinished."""
        for path in self._temporaries:
            path.unlink(missing_ok=True)

    def _copy(self, tokens: int, index: int, number: int) -> list[Stretch]:
        part = self._parts[number]
        sequences, documents, before = self._before[number]
        data = IndexedDataset(part.prefix)
        if (data.sequence_count, data.document_count, data.token_count) != part[1:4]:
            raise ValueError(f"{part.prefix} has changed: delete its folder to begin anew")
        start, size = before * self.dtype.itemsize, part.tokens * self.dtype.itemsize
        copy_bytes(Path(f"{part.prefix}.bin"), tokens, start, size)
        each = list(chunks(part.sequences))
        header, put = self._header, partial(write_at, index, ".idx")
        return [
            Stretch(".bin", start, size, part.crc),
            put(HEADER_SIZE + sequences * LENGTH.itemsize, (data.lengths[c] for c in each)),
            put(
                header.pointers_offset + sequences * OFFSET.itemsize,
                (data.pointers[c] + start for c in each),
            ),
            put(
                header.document_index_offset + (documents + 1) * OFFSET.itemsize,
                (data.document_index[1:][c] + sequences for c in chunks(part.documents)),
            ),
        ]
