"""Plain text: a document a file, or documents between separators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

from megatron_ngpt.data.sources.long import LONG, LongText
from megatron_ngpt.data.sources.records import Document, Refusal
from megatron_ngpt.data.sources.unusable import UnusableError

_BLOCK = 1 << 20


def read_text(
    file: IO[bytes], path: str, keys: Sequence[str], separator: bytes = b""
) -> Iterator[Document | Refusal]:
    """Plain text as documents; each is its text under every key.

    Args:
        file: the content.
        path: its name, for messages.
        keys: names of the texts.
        separator: what stands between documents; none means that the file is one. White space
            after the last separator is no document.
    """
    line = 1
    for text in _split(file, separator):
        record = text.record(path, line, keys)
        if separator and text.last and not text.filled:
            return
        yield record
        line += text.newlines + separator.count(b"\n")


class _Text:
    """A document that comes in parts; what cannot be used is read to its end all the same."""

    def __init__(self) -> None:
        self._text, self._problem, self._problem_line = LongText(), ("", ""), 0
        self.newlines = self._size = 0
        self.filled = self.last = False

    def write(self, part: bytes) -> None:
        if not self._problem[0]:
            try:
                self._text.write(part)
            except UnusableError as err:
                self._fail(err, part)
        self.newlines += part.count(b"\n")
        self._size += len(part)
        self.filled = self.filled or not (not part or part.isspace())

    def record(self, path: str, line: int, keys: Sequence[str]) -> Document | Refusal:
        """The document, or why it cannot be used."""
        text: bytes | LongText = b""
        if not self._problem[0]:
            try:
                text = self._text.finish()
            except UnusableError as err:
                self._fail(err, b"")
        if self._problem[0]:
            return Refusal(path, line + self._problem_line, self._size, *self._problem)
        if not self._size:
            return Refusal(path, line, 0, "empty text", "")
        return Document(path, line, self._size, (text,) * len(keys))

    def _fail(self, err: UnusableError, part: bytes) -> None:
        reason, detail = err.args
        self._problem = reason, detail
        self._problem_line = self.newlines + part.count(b"\n", 0, max(0, err.at - self._size))


def _split(file: IO[bytes], separator: bytes) -> Iterator[_Text]:
    text, rest = _Text(), b""
    while block := file.read(_BLOCK):
        rest += block
        if separator:
            *whole, rest = rest.split(separator)
            for end in whole:
                text.write(end)
                yield text
                text = _Text()
        # A separator may have begun at the end of what has been read.
        if len(rest) >= min(LONG, 4 * _BLOCK):
            keep = len(separator) - 1 if separator else 0
            cut = max(0, len(rest) - keep)
            text.write(rest[:cut])
            rest = rest[cut:]
    text.write(rest)
    text.last = True
    yield text
