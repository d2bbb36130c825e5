"""Texts too long for memory: kept in temporary files, read in parts."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Iterator
from typing import IO

from megatron_ngpt.data.sources.unusable import UnusableError

LONG = 1 << 24
"""Bytes from which on a text is kept in a file."""


class LongText:
    """UTF-8 text that is written in parts, and lies in a temporary file when it is long.

    Attributes:
        size: bytes so far.
        newlines: newlines so far.
    """

    def __init__(self) -> None:
        self.size = self.newlines = 0
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(LONG)  # noqa: SIM115
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def write(self, part: bytes) -> None:
        """Add bytes, which may end inside a character."""
        self._decode(part)
        self._file.write(part)
        self.size += len(part)
        self.newlines += part.count(b"\n")

    def finish(self) -> bytes | LongText:
        """The text: its bytes when it is short, else this object."""
        self._decode(b"", final=True)
        if self.size > LONG:
            return self
        self._file.seek(0)
        return self._file.read()

    def parts(self, size: int) -> Iterator[bytes]:
        """The text in parts of ``size`` bytes, from the beginning."""
        self._file.seek(0)
        while part := self._file.read(size):
            yield part

    def _decode(self, part: bytes, final: bool = False) -> None:
        held = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(part, final)
        except UnicodeDecodeError as err:
            at = self.size - held + err.start
            raise UnusableError("invalid UTF-8", f"byte {at}: {err.reason}", at) from err
