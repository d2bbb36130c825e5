"""Reading a .bin/.idx pair through memory maps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed.format import (
    HEADER_SIZE,
    LENGTH,
    OFFSET,
    corrupt,
    pair,
    read_header,
)
from megatron_ngpt.data.indexed.mapping import map_file

_CHUNK = 1 << 16


class IndexedDataset:
    """A corpus of token sequences, grouped into documents, mapped and never loaded.

    Opening takes the same time and memory for any number of documents: it checks sizes, counts
    and both ends of every table. ``verify`` reads the tables whole.

    Attributes:
        prefix: path without ``.bin`` and ``.idx``.
        files: the .bin and the .idx.
        dtype: type of one token.
        lengths: i32[S], tokens of each sequence.
        pointers: i64[S], byte in the .bin at which each sequence starts.
        document_index: i64[D + 1], first sequence of each document; the last entry is S.

    Raises:
        FileNotFoundError: when one file of the pair is missing.
        ValueError: when the pair is corrupt, cut short or of another kind.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self._bin_path, self._idx_path = self.files = pair(prefix)
        for path in (self._bin_path, self._idx_path):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file; a corpus is named by its prefix, without .bin or .idx, "
                    "and tools/preprocess_data.py makes both files"
                )
        header = read_header(self._idx_path)
        index = map_file(self._idx_path)
        self.dtype = header.dtype
        self.lengths = np.frombuffer(index, LENGTH, header.sequences, HEADER_SIZE)
        self.pointers = np.frombuffer(index, OFFSET, header.sequences, header.pointers_offset)
        self.document_index = np.frombuffer(index, OFFSET, -1, header.document_index_offset)
        self._check_ends()
        self._tokens = map_file(self._bin_path).view(self.dtype)

    @property
    def sequence_count(self) -> int:
        """S, number of sequences."""
        return len(self.lengths)

    @property
    def document_count(self) -> int:
        """D, number of documents."""
        return len(self.document_index) - 1

    @property
    def token_count(self) -> int:
        """N, number of tokens in all documents."""
        return len(self._tokens)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the whole corpus read as one stream: a read-only view."""
        assert 0 <= start <= stop <= self.token_count, (start, stop, self.token_count)
        return self._tokens[start:stop]

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document, its sequences joined: a read-only view.

        Raises:
            ValueError: the .idx is corrupt where it says where the document lies.
        """
        start, stop = self.document_start(number), self.document_start(number + 1)
        if start > stop:
            raise self._corrupt_document(number)
        return self.tokens(start, stop)

    def document_start(self, number: int) -> int:
        """Tokens before a document; ``document_count`` is allowed and gives ``token_count``.

        Raises:
            ValueError: the .idx is corrupt there.
        """
        assert 0 <= number <= self.document_count, (number, self.document_count)
        sequence = int(self.document_index[number])
        if sequence == self.sequence_count:
            return self.token_count
        if 0 <= sequence < self.sequence_count:
            start = int(self.pointers[sequence]) // self.dtype.itemsize
            if 0 <= start <= self.token_count:
                return start
        raise self._corrupt_document(number)

    def document_ends(self, start: int, stop: int) -> np.ndarray:
        """Which of the tokens [start, stop) are the last of a document: i64[ends], from start on.

        Finds them by bisection of the .idx, so the time hardly depends on its size.

        Raises:
            ValueError: the .idx is corrupt there.
        """
        documents = range(self.document_count + 1)
        first = bisect_right(documents, start, key=self.document_start)
        after = bisect_right(documents, stop, first, key=self.document_start)
        sequences = self.document_index[first:after]
        starts = np.full(len(sequences), self.token_count)
        inside = sequences < self.sequence_count
        if (sequences < 0).any() or (sequences > self.sequence_count).any():
            raise self._corrupt_document(first)
        starts[inside] = self.pointers[sequences[inside]] // self.dtype.itemsize
        if ((starts <= start) | (starts > stop)).any():
            raise self._corrupt_document(first)
        return starts - 1 - start

    def verify(self) -> None:
        """Read the three tables and check that they agree everywhere; time and reads O(S + D).

        Raises:
            ValueError: naming the first sequence or document that is wrong.
        """
        for part in chunks(self.sequence_count):
            lengths = self.lengths[part].astype(np.int64)
            starts = self.pointers[part.start : part.stop + 1]
            ends = starts[: len(lengths)] + lengths * self.dtype.itemsize
            # The last sequence has no successor; _check_ends has held it against the .bin.
            wrong = lengths < 0
            wrong[: len(starts) - 1] |= starts[1:] != ends[: len(starts) - 1]
            if wrong.any():
                self._report_sequence(part.start + int(wrong.argmax()))
        for part in chunks(self.document_count):
            firsts = self.document_index[part.start : part.stop + 1]
            wrong = firsts[1:] < firsts[:-1]
            if wrong.any():
                document = part.start + int(wrong.argmax())
                first, after = self.document_index[document : document + 2].tolist()
                where = f"document {document} to end at or after its first sequence {first}"
                raise corrupt(self._idx_path, where, f"an end at sequence {after}")

    def _corrupt_document(self, number: int) -> ValueError:
        where = f"document {number}, or one near it, inside of {self._bin_path.name}"
        return corrupt(self._idx_path, where, "it elsewhere")

    def _report_sequence(self, number: int) -> None:
        start, length = int(self.pointers[number]), int(self.lengths[number])
        if length < 0:
            raise corrupt(self._idx_path, f"sequence {number} of 0 or more tokens", f"{length}")
        end = start + length * self.dtype.itemsize
        found = f"it at byte {int(self.pointers[number + 1])}"
        raise corrupt(self._idx_path, f"sequence {number + 1} to start at byte {end}", found)

    def _check_ends(self) -> None:
        size = self._bin_path.stat().st_size
        first, end = 0, 0
        if self.sequence_count:
            first = int(self.pointers[0])
            end = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize
        if first != 0:
            raise corrupt(self._idx_path, "the first sequence at byte 0", f"it at byte {first}")
        if end != size:
            where = f"{end} bytes, the end of the last sequence in {self._idx_path.name}"
            raise corrupt(self._bin_path, where, f"{size}")
        first, last = self.document_index[[0, -1]].tolist()
        if (first, last) != (0, self.sequence_count):
            where = f"a document index from sequence 0 to {self.sequence_count}"
            raise corrupt(self._idx_path, where, f"one from {first} to {last}")


def largest_of(ids: np.ndarray) -> int:
    """The largest of some ids, -1 of none; a negative one, which is a mistake, counts as huge."""
    return int(ids.view(f"u{ids.dtype.itemsize}").max()) if ids.size else -1


def chunks(count: int) -> Iterator[slice]:
    """[0, count) in slices that bound the memory of whoever walks a table."""
    for start in range(0, count, _CHUNK):
        yield slice(start, min(start + _CHUNK, count))
