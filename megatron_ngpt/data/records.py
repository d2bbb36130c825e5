"""Documents out of files; what cannot be used is named by file, line and reason."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Document(NamedTuple):
    """One record that can be used."""

    path: Path
    line: int
    """Line of the file at which it starts, counted from 1."""
    size: int
    """Bytes it takes in the file."""
    texts: tuple[bytes, ...]
    """UTF-8 text of each key, none empty."""


class Refusal(NamedTuple):
    """One record that cannot be used."""

    path: Path
    line: int
    size: int
    reason: str
    """One of few wordings, to count by."""
    detail: str

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.path}:{self.line}: {self.reason}{detail}"

    def error(self) -> ValueError:
        """The error of a caller that does not go on without this record."""
        plain = "; if the file is plain text, pass --format text" if self.line == 1 else ""
        return ValueError(f"{self}; mend it, or leave such records out with --on-error skip{plain}")


@dataclass
class RecordBatch:
    """Consecutive records of the input."""

    documents: list[Document] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    size: int = 0
    """Bytes of all its records in their files."""


Reader = Callable[[Path, Sequence[str]], Iterator[Document | Refusal]]


class _UnusableError(Exception):
    """Reason and detail of a refusal."""


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Files that names and globs (``**`` for any depth) stand for, those of a glob sorted.

    Raises:
        ValueError: when a pattern matches no file, or two match the same one.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        names = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in map(Path, names) if not path.is_dir()]
        if not paths:
            kind = (
                "only folders; give a glob such as FOLDER/**/*.jsonl" if names else "no such file"
            )
            raise ValueError(f"--input {pattern!r}: {kind}")
        for path in paths:
            if path in found:
                raise ValueError(
                    f"--input {pattern!r}: {path} was already given by {found[path]!r} and would "
                    "be read twice; narrow one of the two"
                )
            found[path] = pattern
    return list(found)


def read_jsonl(path: Path, keys: Sequence[str]) -> Iterator[Document | Refusal]:
    """Records of a JSON Lines file: an object a line, holding a text under each of the keys."""
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            try:
                yield Document(path, number, len(line), _texts_of(line, keys))
            except _UnusableError as err:
                reason, detail = err.args
                yield Refusal(path, number, len(line), reason, detail)


def read_text(path: Path, keys: Sequence[str]) -> Iterator[Document | Refusal]:
    """A plain text file as one document; it is its text under every key."""
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        yield Refusal(path, line, len(content), "invalid UTF-8", f"byte {err.start}: {err.reason}")
        return
    if content:
        yield Document(path, 1, len(content), (content,) * len(keys))
    else:
        yield Refusal(path, 1, 0, "empty text", "")


READERS: dict[str, Reader] = {"jsonl": read_jsonl, "text": read_text}
"""Formats of input files by name."""


def in_batches(records: Iterable[Document | Refusal], batch_bytes: int) -> Iterator[RecordBatch]:
    """Group records, in order, until they take ``batch_bytes`` or more."""
    batch = RecordBatch()
    for record in records:
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


def _texts_of(line: bytes, keys: Sequence[str]) -> tuple[bytes, ...]:
    try:
        record = _parse(line)
    except _UnusableError as err:
        if line.endswith(b"\n"):
            raise
        raise _UnusableError("half-written last line", ": ".join(err.args)) from err
    if not isinstance(record, dict):
        raise _UnusableError("no JSON object", _excerpt(record))
    return tuple(_text_of(record, key) for key in keys)


def _parse(line: bytes) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError as err:
        raise _UnusableError("invalid UTF-8", f"byte {err.start}: {err.reason}") from err
    if text.isspace():
        raise _UnusableError("blank line", "")
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise _UnusableError("invalid JSON", f"column {err.colno}: {err.msg}") from err
    except (ValueError, RecursionError) as err:
        # A number of too many digits, brackets nested too deeply.
        raise _UnusableError("invalid JSON", str(err)) from err


def _text_of(record: dict[str, Any], key: str) -> bytes:
    if key not in record:
        raise _UnusableError("missing key", f"{key!r} is not among {list(record)}")
    text = record[key]
    if not isinstance(text, str):
        raise _UnusableError("no string", f"key {key!r} holds {_excerpt(text)}")
    if not text:
        raise _UnusableError("empty text", f"key {key!r}")
    try:
        return text.encode()
    except UnicodeEncodeError as err:
        detail = f"key {key!r}: half a surrogate pair at character {err.start}"
        raise _UnusableError("invalid Unicode", detail) from err


def _excerpt(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
