"""The documents of pairs, block by block, so that no operation holds a corpus in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter

_BLOCK_TOKENS = 1 << 22
_BLOCK_DOCUMENTS = 1 << 14
_HASHED = 1 << 20


@dataclass(frozen=True)
class Block:
    """Consecutive documents."""

    first: int
    """Number of the first one, counted over all pairs that are read together."""
    tokens: np.ndarray
    """[tokens] of all documents."""
    lengths: np.ndarray
    """i64[sequences], tokens of each sequence."""
    sequences: np.ndarray
    """i64[documents], sequences of each document."""

    @property
    def sizes(self) -> np.ndarray:
        """i64[documents], tokens of each document."""
        ends = np.cumsum(self.sequences)
        totals = np.concatenate([[0], np.cumsum(self.lengths)])
        found: np.ndarray = totals[ends] - totals[ends - self.sequences]
        return found

    def digests(self) -> list[bytes]:
        """16 bytes for the content of each document, whatever the dtype of its tokens."""
        ends = np.cumsum(self.sizes).tolist()
        return [_digest(self.tokens[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    def select(self, wanted: np.ndarray) -> Block:
        """The documents of bool[documents]; views of the same memory where it takes them all."""
        if wanted.all():
            return self
        tokens = self.tokens[np.repeat(wanted, self.sizes)]
        lengths = self.lengths[np.repeat(wanted, self.sequences)]
        return Block(self.first, tokens, lengths, self.sequences[wanted])

    def write(self, writer: IndexedWriter) -> None:
        """Add the documents to a pair."""
        writer.add_block(self.tokens, self.lengths, self.sequences)


def blocks(datasets: Sequence[IndexedDataset], job: str = "") -> Iterator[Block]:
    """Documents of pairs in order, some 4 million tokens or one document at a time.

    Args:
        datasets: the pairs.
        job: what a progress bar says; "" shows none.
    """
    total = sum(dataset.token_count for dataset in datasets)
    first = 0
    hidden = None if job else True
    with tqdm(total=total, unit="token", unit_scale=True, desc=job, disable=hidden) as bar:
        for dataset in datasets:
            for start, stop in _ranges(dataset):
                block = read_block(dataset, start, stop, first)
                yield block
                bar.update(block.tokens.size)
            first += dataset.document_count


def read_block(dataset: IndexedDataset, start: int, stop: int, before: int = 0) -> Block:
    """Documents [start, stop) of a pair, numbered from ``before + start`` on."""
    index = dataset.document_index[start : stop + 1]
    tokens = dataset.tokens(dataset.document_start(start), dataset.document_start(stop))
    lengths = dataset.lengths[index[0] : index[-1]].astype(np.int64)
    return Block(before + start, tokens, lengths, np.diff(index))


def widest(datasets: Sequence[IndexedDataset]) -> np.dtype:
    """A dtype that holds the ids of all pairs."""
    return np.dtype(max((dataset.dtype for dataset in datasets), key=lambda dtype: dtype.itemsize))


def _ranges(dataset: IndexedDataset) -> Iterator[tuple[int, int]]:
    start = 0
    while start < dataset.document_count:
        stop = min(start + _BLOCK_DOCUMENTS, dataset.document_count)
        limit = dataset.document_start(start) + _BLOCK_TOKENS
        while stop > start + 1 and dataset.document_start(stop) > limit:
            stop = (start + stop) // 2
        yield start, stop
        start = stop


def _digest(tokens: np.ndarray) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for start in range(0, tokens.size, _HASHED):
        found.update(tokens[start : start + _HASHED].astype("<i4").data)
    return found.digest()
