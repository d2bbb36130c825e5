"""What reading yields: documents that can be used, and refusals that say why not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_ngpt.data.sources.long import LongText


class Document(NamedTuple):
    """One record that can be used."""

    path: str
    line: int
    """Line at which it starts, counted from 1 at the beginning of the piece that was read."""
    size: int
    """Bytes it takes in the file, decompressed."""
    texts: tuple[bytes | LongText, ...]
    """UTF-8 text of each key, none empty."""

    @property
    def is_long(self) -> bool:
        """Whether a text of it is kept in a file."""
        return not all(isinstance(text, bytes) for text in self.texts)


class Refusal(NamedTuple):
    """One record that cannot be used."""

    path: str
    line: int
    """Counted like a document's."""
    size: int
    reason: str
    """One of few wordings, to count by."""
    detail: str

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.path}:{self.line}: {self.reason}{detail}"

    def error(self) -> ValueError:
        """The error of a caller that does not go on without this record."""
        other = "parquet" if self.path.endswith(".parquet") else "text"
        hint = f"; if the file is {other}, pass --format {other}" if self.line == 1 else ""
        return ValueError(f"{self}; mend it, or leave such records out with --on-error skip{hint}")


@dataclass
class RecordBatch:
    """Consecutive records of the input."""

    documents: list[Document] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    size: int = 0
    """Bytes of all its records in their files."""


def in_batches(records: Iterable[Document | Refusal], batch_bytes: int) -> Iterator[RecordBatch]:
    """Group records, in order, until they take ``batch_bytes`` or more; a long one stands alone."""
    batch = RecordBatch()
    for record in records:
        if isinstance(record, Document) and record.is_long:
            if batch.documents or batch.refusals:
                yield batch
            yield RecordBatch([record], size=record.size)
            batch = RecordBatch()
            continue
        batch.size += record.size
        if isinstance(record, Document):
            batch.documents.append(record)
        else:
            batch.refusals.append(record)
        if batch.size >= batch_bytes:
            yield batch
            batch = RecordBatch()
    if batch.documents or batch.refusals:
        yield batch
