"""JSON that somebody else may have written: nothing but ValueError for what is none."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a JSON document holds.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("no JSON that can be read: it is nested too deep") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The same of a document that is an object.

    Raises:
        ValueError: it is none.
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is expected, not {type(found).__name__}")
    return found
