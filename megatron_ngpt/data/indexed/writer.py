"""Writing a .bin/.idx pair as a stream, so that it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from megatron_ngpt.data.indexed.files import BLOCK, crc32_of, publish
from megatron_ngpt.data.indexed.format import (
    HEADER_SIZE,
    LENGTH,
    OFFSET,
    Header,
    dtype_code,
    pair,
)
from megatron_ngpt.data.indexed.reader import IndexedDataset, chunks, largest_of

_BUFFER = 1 << 20


class IndexedWriter:
    """Context manager that writes PREFIX.bin and PREFIX.idx, byte for byte as megatron-core does.

    Tokens, lengths and document ends go to temporary files beside the pair as they come, so
    memory does not grow with the corpus. Leaving the ``with`` block completes and syncs the
    files and gives them their names, the .idx last; leaving it by an exception removes them. A
    killed process leaves only ``PREFIX.*.tmp``, which the next writer of that prefix replaces.
    An existing pair stays as it is until the new one is complete.

    Args:
        prefix: path without ``.bin`` and ``.idx``, in a folder that exists.
        dtype: type of one token; see ``dtype_for``.
        checksum: whether to reckon checksums of the files.

    Attributes:
        sequence_count, document_count, token_count: what has been added so far.
        largest_id: of what has been added; -1 without tokens.
        checksums: CRC-32 of the complete files by their endings, in hexadecimal; empty before.

    Raises:
        ValueError: when dtype is none of the format's integer types.
    """

    def __init__(self, prefix: str | Path, dtype: DTypeLike, checksum: bool = False) -> None:
        self.prefix, self.dtype = str(prefix), np.dtype(dtype)
        self.checksums: dict[str, str] = {}
        self._checksum, self._tokens_crc = checksum, 0
        dtype_code(self.dtype)
        self.sequence_count = self.document_count = self.token_count = 0
        self.largest_id = -1
        self._paths = pair(prefix)
        self._temporaries = [Path(f"{prefix}.{name}.tmp") for name in ("bin", "idx", "documents")]
        self._files = ExitStack()

    def __enter__(self) -> IndexedWriter:
        self._bin, self._idx, self._documents = (
            self._files.enter_context(path.open("w+b", _BUFFER)) for path in self._temporaries
        )
        self._idx.write(bytes(HEADER_SIZE))
        self._documents.write(np.zeros(1, OFFSET).data)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            # Names first: on a full disk closing fails too.
            for path in self._temporaries:
                path.unlink(missing_ok=True)
            self._files.close()

    def add_document(self, tokens: ArrayLike, lengths: Sequence[int] | None = None) -> None:
        """Add one document of one or several sequences.

        Args:
            tokens: [tokens], the document's ids.
            lengths: tokens of each of its sequences; None means one sequence.

        Raises:
            ValueError: when an id does not fit the dtype or the lengths do not add up.
        """
        ids = np.asarray(tokens)
        sequences = np.asarray([ids.size] if lengths is None else lengths, np.int64)
        self.add_block(ids, sequences, np.array([sequences.size]))

    def add_documents(self, tokens: ArrayLike, lengths: ArrayLike) -> None:
        """Add many documents of one sequence each, without a Python loop.

        Args:
            tokens: [tokens], the ids of all documents, one after another.
            lengths: [documents], tokens of each document.

        Raises:
            ValueError: when an id does not fit the dtype or the lengths do not add up.
        """
        sequences = np.asarray(lengths, np.int64)
        self.add_block(np.asarray(tokens), sequences, np.ones(sequences.size, np.int64))

    def add_dataset(self, dataset: IndexedDataset, watch: Callable[[int], object] = int) -> None:
        """Add all documents of another pair, in bounded memory.

        Args:
            dataset: the pair.
            watch: told the bytes of each block of tokens that has been copied.

        Raises:
            ValueError: when an id does not fit the dtype.
        """
        before = self.sequence_count
        for part in chunks(dataset.sequence_count):
            self._write_lengths(dataset.lengths[part])
        for part in chunks(dataset.document_count):
            ends = dataset.document_index[part.start + 1 : part.stop + 1]
            self._write_ends(before + ends)
        # Not through the map: its pages would count as this process' memory.
        with open(f"{dataset.prefix}.bin", "rb", buffering=0) as tokens:
            while block := tokens.read(BLOCK):
                self._write_tokens(np.frombuffer(block, dataset.dtype))
                watch(len(block))

    def add_long_document(self, parts: Iterable[ArrayLike]) -> None:
        """Add one document that comes in parts, none of which is kept.

        Args:
            parts: [tokens] each, the document's ids one after another.

        Raises:
            ValueError: when an id does not fit the dtype.
        """
        before, first = self.token_count, self.sequence_count
        for ids in parts:
            self._write_tokens(np.asarray(ids))
        count, largest = self.token_count - before, np.iinfo(LENGTH).max
        self._write_lengths(np.array([largest] * (count // largest) + [count % largest]))
        self._write_ends(np.array([first + 1 + count // largest]))

    def add_block(self, tokens: np.ndarray, lengths: np.ndarray, per_document: np.ndarray) -> None:
        """Add many documents of one or several sequences each.

        Args:
            tokens: [tokens], the ids of all documents, one after another.
            lengths: i64[sequences], tokens of each sequence.
            per_document: i64[documents], sequences of each document.

        Raises:
            ValueError: when an id does not fit the dtype or the lengths do not add up.
        """
        _check_lengths(tokens, lengths)
        ends = self.sequence_count + np.cumsum(per_document)
        self._write_tokens(tokens)
        self._write_lengths(lengths)
        self._write_ends(ends)

    def _write_tokens(self, tokens: np.ndarray) -> None:
        ids = self._encode(tokens)
        self._bin.write(ids.data)
        if self._checksum:
            self._tokens_crc = zlib.crc32(ids.data, self._tokens_crc)
        self.token_count += ids.size
        self.largest_id = max(self.largest_id, largest_of(ids))

    def _write_lengths(self, lengths: np.ndarray) -> None:
        self._idx.write(lengths.astype(LENGTH).data)
        self.sequence_count += lengths.size

    def _write_ends(self, ends: np.ndarray) -> None:
        self._documents.write(ends.astype(OFFSET).data)
        self.document_count += ends.size

    def _encode(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.size and not np.can_cast(tokens.dtype, self.dtype):
            bounds = np.iinfo(self.dtype)
            low, high = tokens.min(), tokens.max()
            if tokens.dtype.kind not in "iu" or low < bounds.min or high > bounds.max:
                raise ValueError(
                    f"tokens from {low} to {high} ({tokens.dtype}) do not fit {self.dtype} "
                    f"({bounds.min} to {bounds.max}): open the writer with "
                    "dtype_for(vocab_size) of the tokenizer that made them"
                )
        return np.ascontiguousarray(tokens, self.dtype)

    def _publish(self) -> None:
        self._complete_index()
        for file in (self._bin, self._idx):
            file.flush()
            os.fsync(file.fileno())
        if self._checksum:
            index = crc32_of(self._temporaries[1])
            self.checksums = {".bin": f"{self._tokens_crc:08x}", ".idx": index}
        publish(self._temporaries, self._paths)

    def _complete_index(self) -> None:
        """Add pointers and document index after the lengths, then the header that counts them."""
        self._idx.flush()
        position = 0
        for part in chunks(self.sequence_count):
            count, offset = part.stop - part.start, HEADER_SIZE + part.start * LENGTH.itemsize
            lengths = np.fromfile(self._temporaries[1], LENGTH, count, offset=offset)
            sizes = lengths.astype(OFFSET) * self.dtype.itemsize
            ends = position + np.cumsum(sizes)
            self._idx.write((ends - sizes).data)
            position = int(ends[-1])
        self._documents.seek(0)
        shutil.copyfileobj(self._documents, self._idx, _BUFFER)
        self._idx.seek(0)
        self._idx.write(Header(self.dtype, self.sequence_count, self.document_count).pack())


def _check_lengths(tokens: np.ndarray, lengths: np.ndarray) -> None:
    assert tokens.ndim == lengths.ndim == 1, (tokens.shape, lengths.shape)
    if lengths.sum() != tokens.size:
        raise ValueError(f"sequence lengths add up to {lengths.sum()} for {tokens.size} tokens")
    largest = np.iinfo(LENGTH).max
    if lengths.size and not 0 <= lengths.min() <= lengths.max() <= largest:
        raise ValueError(
            f"a sequence of {lengths.min()} or {lengths.max()} tokens cannot be stored: the format "
            f"holds 0 to {largest}; give a longer document's lengths as several sequences"
        )
