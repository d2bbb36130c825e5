"""Documents too long for memory: encoded in parts that give the ids of the whole."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from megatron_ngpt.data.bulk import BulkEncoder
from megatron_ngpt.data.sources.long import LongText
from megatron_ngpt.data.sources.unusable import UnusableError

# Between letters no rule of normalisation reaches over the space.
_PLACE = re.compile(rb"[A-Za-z0-9] (?=[A-Za-z0-9])")
_AROUND = 1 << 9
_SEARCHED = 1 << 16
_LONGEST_PART = 1 << 26
_BLOCK = 1 << 20


class LongDocuments:
    """Encodes texts in parts, which end at single spaces between letters.

    Whether the next part must keep that space, or gets it back from the tokenizer, is found by
    trying. At every place the text around it must give the same ids in two parts as in one.

    Args:
        encoder: encodes the parts.
        crossing: whether the tokenizer may have a token that goes on after such a space; then
            nothing can be cut.
    """

    def __init__(self, encoder: BulkEncoder, crossing: bool) -> None:
        self._encoder, self._skipped = encoder, -1
        if not crossing:
            whole = self._ids(b"one two")
            ways = {0: b" two", 1: b"two"}
            fits = [n for n, end in ways.items() if self._ids(b"one") + self._ids(end) == whole]
            self._skipped = fits[0] if fits else -1

    def encode(self, text: LongText, dtype: np.dtype) -> LongIds:
        """The ids of a text, in a file.

        Raises:
            UnusableError: where 64 MiB of it hold no place to cut.
        """
        ids = LongIds(dtype)
        for part in self._parts(text):
            ids.add(self._encoder.encode([part])[0])
        return ids

    def _parts(self, text: LongText) -> Iterator[bytes]:
        rest = b""
        for block in text.parts(self._encoder.batch_bytes):
            rest += block
            if cut := self._place(rest):
                yield rest[:cut]
                rest = rest[cut + self._skipped :]
            elif len(rest) > _LONGEST_PART:
                detail = f"{len(rest)} bytes without a single space between letters"
                raise UnusableError("too long", f"{detail} at which to encode them in parts")
        if rest:
            yield rest

    def _place(self, text: bytes) -> int:
        """The last byte of a text before which it can be cut, 0 when there is none."""
        if self._skipped < 0:
            return 0
        first = max(_AROUND, len(text) - _SEARCHED)
        places = [match.end() - 1 for match in _PLACE.finditer(text, first, len(text) - _AROUND)]
        for place in reversed(places[-100:]):
            start = text.find(b" ", place - _AROUND, place) + 1
            end = text.rfind(b" ", place, place + _AROUND)
            if not start or end <= place:
                continue
            parts = text[start:place], text[place + self._skipped : end]
            if self._ids(parts[0]) + self._ids(parts[1]) == self._ids(text[start:end]):
                return place
        return 0

    def _ids(self, text: bytes) -> list[int]:
        ids: list[int] = self._encoder.encode([text])[0].tolist()
        return ids


class LongIds:
    """Ids of one document in a temporary file.

    Attributes:
        size: number of ids.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.size, self._dtype = 0, dtype
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, ids: np.ndarray) -> None:
        """Add ids at the end."""
        self._file.write(ids.astype(self._dtype).data)
        self.size += ids.size

    def blocks(self) -> Iterator[np.ndarray]:
        """The ids from the beginning, some at a time."""
        self._file.seek(0)
        while block := self._file.read(_BLOCK):
            yield np.frombuffer(block, self._dtype)
