"""Files of lines, each a JSON object, that a process may have been killed at."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_ngpt.plain_json import parse_object

_LARGEST = 1 << 62
_LATEST = 1e11
"""Seconds since 1970, or seconds, that are still meant."""


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file; what is none, as half a line of a killed process, is passed over."""
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    for line in text.splitlines():
        with suppress(ValueError):
            yield parse_object(line)


def add_line(path: Path, facts: Mapping[str, Any]) -> None:
    """Append an object, so that it survives a power failure; half a line before it stays alone.

    Raises:
        OSError: the disk is full.
    """
    torn = path.exists() and path.read_bytes()[-1:] not in (b"\n", b"")
    with path.open("ab") as stream:
        stream.write(b"\n" * torn + json.dumps(facts).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def usable(kind: type, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a file says, the fields of a dataclass that have its types.

    A later version may have others; a file that somebody edited may have anything.
    """
    fields = kind.__annotations__
    return {n: v for n, v in facts.items() if n in fields and is_a(fields[n], v)}


def is_a(annotation: str, value: Any) -> bool:
    """Whether a value from JSON is of a field's type, and a number one that is meant."""
    name = annotation.partition("[")[0]
    if isinstance(value, bool) or name == "bool":
        return isinstance(value, bool) and name == "bool"
    if name == "int":
        return isinstance(value, int) and abs(value) < _LARGEST
    if name == "float":
        return isinstance(value, int | float) and math.isfinite(value) and abs(value) < _LATEST
    if name == "str":
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, {"dict": dict, "list": list}[name])
