"""JSON Lines: an object a line, texts under some of its keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from megatron_ngpt.data.sources.files import open_bytes
from megatron_ngpt.data.sources.long import LONG, LongText
from megatron_ngpt.data.sources.long_json import LongLine
from megatron_ngpt.data.sources.records import Document, Refusal
from megatron_ngpt.data.sources.unusable import UnusableError

_SCAN: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_ENDS = ("\n", "", "\r\n")


def read_jsonl(
    file: IO[bytes], path: str, keys: Sequence[str], start: int = 0, stop: int | None = None
) -> Iterator[Document | Refusal]:
    """Records of the lines that begin in bytes [start, stop) of a file.

    Args:
        file: its content from the beginning; it must be seekable where ``start`` is not 0.
        path: its name, for messages.
        keys: keys whose values are the texts.
        start: first byte at which a line may begin.
        stop: byte from which on lines are another reader's; None means the end of the file.
    """
    position = _seek_line(file, start) if start else 0
    number = 0
    while stop is None or position < stop:
        line = file.readline(LONG)
        if not line:
            break
        number += 1
        long = LongLine(line, file) if len(line) == LONG else None
        texts: tuple[bytes | LongText, ...] = ()
        try:
            texts = long.texts(keys) if long else texts_of(line, keys)
            reason, detail = "", ""
        except UnusableError as err:
            reason, detail = err.args
        size = long.size if long else len(line)
        position += size
        if reason:
            yield Refusal(path, number, size, reason, detail)
        else:
            yield Document(path, number, size, texts)


def lines_before(path: str, start: int) -> int:
    """Lines of a file before the first that begins at or after a byte."""
    if not start:
        return 0
    left, lines = start - 1, 1
    with open_bytes(path) as file:
        while left and (block := file.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def texts_of(line: bytes, keys: Sequence[str]) -> tuple[bytes, ...]:
    """UTF-8 texts of a line's keys.

    Raises:
        UnusableError: with reason and detail.
    """
    try:
        record = _parse(line)
    except UnusableError as err:
        if line.endswith(b"\n"):
            raise
        raise UnusableError("half-written last line", ": ".join(err.args)) from err
    if not isinstance(record, dict):
        raise UnusableError("no JSON object", excerpt(record))
    return tuple(_text_of(record, key) for key in keys)


def utf8_of(text: Any, key: str) -> bytes:
    """A value of a record as UTF-8.

    Raises:
        UnusableError: when it is no string, an empty one, or none that UTF-8 can express.
    """
    if not isinstance(text, str):
        raise UnusableError("no string", f"key {key!r} holds {excerpt(text)}")
    if not text:
        raise UnusableError("empty text", f"key {key!r}")
    try:
        return text.encode()
    except UnicodeEncodeError as err:
        detail = f"key {key!r}: half a surrogate pair at character {err.start}"
        raise UnusableError("invalid Unicode", detail) from err


def excerpt(value: Any) -> str:
    """A value as JSON, or its beginning."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _seek_line(file: IO[bytes], start: int) -> int:
    """Go to the first line that begins at or after a byte, and say where that is."""
    position = file.seek(start - 1)
    while part := file.readline(1 << 20):
        position += len(part)
        if part.endswith(b"\n"):
            break
    return position


def _parse(line: bytes) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError as err:
        raise UnusableError("invalid UTF-8", f"byte {err.start}: {err.reason}") from err
    # What json.loads does with a line that has no white space around it, in half the time.
    try:
        record, end = _SCAN(text, 0)
        if text[end:] in _ENDS:
            return record
    except (StopIteration, ValueError, RecursionError):
        pass  # said below
    if text.isspace():
        raise UnusableError("blank line", "")
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise UnusableError("invalid JSON", f"column {err.colno}: {err.msg}") from err
    except (ValueError, RecursionError) as err:
        # A number of too many digits, brackets nested too deeply.
        raise UnusableError("invalid JSON", str(err)) from err


def _text_of(record: dict[str, Any], key: str) -> bytes:
    if key not in record:
        raise UnusableError("missing key", f"{key!r} is not among {list(record)}")
    return utf8_of(record[key], key)
