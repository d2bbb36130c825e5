"""One way to read every format."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from megatron_ngpt.data.sources.files import open_bytes
from megatron_ngpt.data.sources.jsonl import read_jsonl
from megatron_ngpt.data.sources.parquet import read_parquet
from megatron_ngpt.data.sources.records import Document, Refusal
from megatron_ngpt.data.sources.text import read_text

Format: TypeAlias = Literal["jsonl", "text", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
ENDINGS: dict[Format, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "text": (),
    "parquet": (".parquet",),
}
"""Which files of a folder hold a format; none means all."""


@dataclass(frozen=True)
class Piece:
    """A file, or the lines of one that begin in a range of bytes."""

    path: str
    start: int = 0
    stop: int | None = None
    """None means to the end of the file."""


def read_piece(
    piece: Piece, format: Format, keys: Sequence[str], separator: str = ""
) -> Iterator[Document | Refusal]:
    """Records of a piece, in order.

    What is compressed and cannot be decompressed ends with a refusal named "damaged file".

    Args:
        piece: what to read.
        format: what it holds.
        keys: keys or columns of the texts.
        separator: of format text, what stands between documents; "" means a document a file.
    """
    line = 0
    try:
        with open_bytes(piece.path) as file:
            if format == "jsonl":
                records = read_jsonl(file, piece.path, keys, piece.start, piece.stop)
            elif format == "parquet":
                records = read_parquet(file, piece.path, keys)
            else:
                records = read_text(
                    file, piece.path, keys, separator.encode(errors="surrogateescape")
                )
            for record in records:
                line = record.line
                yield record
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as err:
        if isinstance(err, OSError) and err.errno is not None:
            raise
        yield Refusal(piece.path, line + 1, 0, "damaged file", str(err))
