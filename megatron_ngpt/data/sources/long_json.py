"""A JSON object of any length on a line, read in parts: as ``json`` reads it, in bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from megatron_ngpt.data.sources.long import LONG, LongText
from megatron_ngpt.data.sources.unusable import UnusableError

_PART = 1 << 22
_LONGEST_KEY = 1 << 22
_ESCAPE = 6  # bytes of the longest one, \uXXXX
_PLAIN = rb'[^"\\\x00-\x1f]*'
_STRING = re.compile(_PLAIN + rb'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})' + _PLAIN + rb")*")
_HIGH_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2})\Z")
_SPACE = re.compile(rb"[ \t\r\n]*")
_OTHER = re.compile(rb'[^"{}\[\],]*')


class LongLine:
    """One line of a file, of which only a part is in memory.

    Args:
        head: its beginning, already read.
        file: where the rest comes from.

    Attributes:
        size: bytes read so far.
    """

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self.size = len(head)
        self._buffer, self._at, self._file = head, 0, file
        self._after_space = False
        self._whole = head.endswith(b"\n")

    def texts(self, keys: Sequence[str]) -> tuple[bytes | LongText, ...]:
        """The texts of its keys; reads the line to its end, whatever is in it.

        Raises:
            UnusableError: with reason and detail.
        """
        try:
            found = self._object(keys)
        except UnusableError as err:
            self._skip()
            if self._buffer.endswith(b"\n"):
                raise
            raise UnusableError("half-written last line", ": ".join(err.args)) from err
        return tuple(self._wanted(found, key) for key in keys)

    def _wanted(
        self, found: Mapping[str, bytes | LongText | UnusableError], key: str
    ) -> bytes | LongText:
        if key not in found:
            raise UnusableError("missing key", f"{key!r} is not in a line of {self.size} bytes")
        text = found[key]
        if isinstance(text, UnusableError):
            raise text
        return text

    def _object(self, keys: Sequence[str]) -> dict[str, bytes | LongText | UnusableError]:
        found: dict[str, bytes | LongText | UnusableError] = {}
        if self._next() != b"{":
            raise UnusableError("no JSON object", f"a line of more than {LONG} bytes")
        self._at += 1
        if self._next() == b"}":
            self._at += 1
        else:
            while True:
                self._expect(b'"')
                key = self._key()
                self._expect(b":")
                value = self._value(key, key in keys)
                if key in keys:
                    found[key] = value
                if self._next() != b",":
                    break
                self._at += 1
            self._expect(b"}")
        if self._next():
            raise self._wrong("more after the object")
        return found

    def _key(self) -> str:
        key = ""
        for part in self._string():
            key += part
            if len(key) > _LONGEST_KEY:
                raise UnusableError("too long", f"a key of over {_LONGEST_KEY} characters")
        return key

    def _value(self, key: str, wanted: bool) -> bytes | LongText | UnusableError:
        if self._next() != b'"':
            value = json.dumps(self._other())
            value = value if len(value) <= 40 else f"{value[:37]}..."
            return UnusableError("no string", f"key {key!r} holds {value}")
        self._at += 1
        text = LongText()
        for part in self._string():
            if wanted:
                text.write(_encode(part, key))
        if not text.size:
            return UnusableError("empty text", f"key {key!r}")
        return text.finish()

    def _string(self) -> Iterator[str]:
        """What stands between here and the closing quote, in parts."""
        while True:
            match = _STRING.match(self._buffer, self._at)
            assert match is not None
            end = match.end()
            last = self._buffer[end : end + 1] == b'"'
            if not last and len(self._buffer) - end >= _ESCAPE:
                raise self._wrong("an invalid character or escape in a string")
            raw = self._buffer[self._at : end]
            raw = raw if last else raw[: len(raw) - _unfinished(raw)]
            self._at += len(raw) + last
            yield _unescape(raw)
            if last:
                return
            if not self._more():
                raise self._wrong("a string without an end")

    def _other(self) -> object:
        """A value that is no string."""
        value, depth = bytearray(), 0
        while True:
            byte = self._next()
            if not byte or (not depth and byte in b",}]" and value):
                break
            if self._after_space:
                value += b" "
            if byte == b'"':
                self._at += 1
                for part in ['"', *(json.dumps(text)[1:-1] for text in self._string()), '"']:
                    value += part.encode()
            else:
                value += self._take(_OTHER)
            depth += (byte in b"{[") - (byte in b"}]")
            if len(value) > LONG:
                raise UnusableError("too long", f"a value of over {LONG} bytes that is no string")
        try:
            parsed: object = json.loads(value)
        except (ValueError, RecursionError) as err:
            raise UnusableError("invalid JSON", str(err)) from err
        return parsed

    def _take(self, pattern: re.Pattern[bytes]) -> bytes:
        """What a pattern matches here, or one byte."""
        match = pattern.match(self._buffer, self._at)
        assert match is not None
        start, self._at = self._at, max(self._at + 1, match.end())
        return self._buffer[start : self._at]

    def _next(self) -> bytes:
        """The next byte that is no white space, b"" at the end of the line."""
        self._after_space = False
        while True:
            match = _SPACE.match(self._buffer, self._at)
            assert match is not None
            self._after_space |= match.end() > self._at
            self._at = match.end()
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def _expect(self, byte: bytes) -> None:
        if self._next() != byte:
            raise self._wrong(f"no {byte.decode()}")
        self._at += 1

    def _wrong(self, what: str) -> UnusableError:
        byte = self.size - len(self._buffer) + self._at
        return UnusableError("invalid JSON", f"byte {byte} of the line: {what}")

    def _more(self) -> bool:
        if self._whole:
            return False
        part = self._file.readline(_PART)
        self._buffer, self._at = self._buffer[self._at :] + part, 0
        self.size += len(part)
        self._whole = not part or part.endswith(b"\n")
        return bool(part)

    def _skip(self) -> None:
        self._at = len(self._buffer)
        while self._more():
            self._at = len(self._buffer)


def _unfinished(raw: bytes) -> int:
    """Bytes at the end that only what follows will make a character."""
    if match := _HIGH_SURROGATE.search(raw[-1000:]):
        return len(match[1])
    for back in range(1, min(3, len(raw)) + 1):
        byte = raw[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            return back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else 0
    return 0


def _unescape(raw: bytes) -> str:
    try:
        text: str = json.loads(b'"' + raw + b'"')
    except UnicodeDecodeError as err:
        raise UnusableError("invalid UTF-8", err.reason) from err
    return text


def _encode(text: str, key: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as err:
        raise UnusableError("invalid Unicode", f"key {key!r}: half a surrogate pair") from err
