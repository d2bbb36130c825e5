"""Parquet files: a document a row, texts in some of the columns. Sole home of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from megatron_ngpt.data.sources.jsonl import utf8_of
from megatron_ngpt.data.sources.records import Document, Refusal
from megatron_ngpt.data.sources.unusable import UnusableError
from megatron_ngpt.extras import require

_ROWS = 64


def read_parquet(file: IO[bytes], path: str, keys: Sequence[str]) -> Iterator[Document | Refusal]:
    """Rows of a file. Memory holds one row group's columns, whose size the file's maker chose.

    Raises:
        ModuleNotFoundError: when pyarrow is not installed.
        ValueError: when the file is damaged or lacks a column.
    """
    pyarrow = require("pyarrow", "preprocess", "reading Parquet")
    parquet = require("pyarrow.parquet", "preprocess", "reading Parquet")
    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        for key in keys:
            if key not in columns:
                raise ValueError(f"{path}: no column {key!r} among {columns}: set --json-keys")
        number = 0
        for batch in table.iter_batches(_ROWS, columns=list(keys)):
            for row in zip(*(batch[key].to_pylist() for key in keys), strict=True):
                number += 1
                yield _record(path, number, row, keys)
    except pyarrow.ArrowInvalid as err:
        raise ValueError(f"{path}: no complete Parquet file ({err})") from err


def _record(
    path: str, number: int, row: Sequence[object], keys: Sequence[str]
) -> Document | Refusal:
    try:
        texts = tuple(utf8_of(text, key) for text, key in zip(row, keys, strict=True))
    except UnusableError as err:
        reason, detail = err.args
        return Refusal(path, number, 0, reason, detail)
    return Document(path, number, sum(map(len, texts)), texts)
