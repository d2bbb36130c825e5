"""Plain text: a document a file, or documents between separators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from megatron_ngpt.data.sources.records import Document, Refusal

_BLOCK = 1 << 20


def read_text(
    file: IO[bytes], path: str, keys: Sequence[str], separator: bytes = b""
) -> Iterator[Document | Refusal]:
    """Plain text as documents; each is its text under every key.

    Args:
        file: the content.
        path: its name, for messages.
        keys: names of the texts.
        separator: what stands between documents; none means that the file is one. Nothing after
            the last separator is no document.
    """
    line = 1
    for text in _split(file, separator) if separator else [file.read()]:
        yield _record(path, line, text, keys)
        line += text.count(b"\n") + separator.count(b"\n")


def _split(file: IO[bytes], separator: bytes) -> Iterator[bytes]:
    rest, searched = bytearray(), 0
    while block := file.read(_BLOCK):
        rest += block
        first = 0
        while (end := rest.find(separator, max(first, searched))) >= 0:
            yield bytes(rest[first:end])
            first = searched = end + len(separator)
        del rest[:first]
        searched = max(0, len(rest) - len(separator) + 1)
    if rest.strip():
        yield bytes(rest)


def _record(path: str, line: int, text: bytes, keys: Sequence[str]) -> Document | Refusal:
    try:
        text.decode()
    except UnicodeDecodeError as err:
        line += text.count(b"\n", 0, err.start)
        return Refusal(path, line, len(text), "invalid UTF-8", f"byte {err.start}: {err.reason}")
    if not text:
        return Refusal(path, line, 0, "empty text", "")
    return Document(path, line, len(text), (text,) * len(keys))
