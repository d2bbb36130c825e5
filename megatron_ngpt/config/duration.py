"""Lengths of time as people write them."""

from __future__ import annotations

import math
import re

_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNITS = (86400, 3600, 60, 1)


def seconds_of(text: str) -> float:
    """Seconds of ``3h50m``, ``90s``, ``1d12h`` or a plain number of minutes; infinity of ``""``.

    Raises:
        ValueError: it is none of these.
    """
    if not text:
        return math.inf
    if text.isdecimal():
        return float(text) * 60
    found = _PARTS.fullmatch(text)
    if not found:
        raise ValueError(f"{text}: is no length of time such as 3h50m, 90m or 90 (minutes)")
    return float(sum(int(n or 0) * unit for n, unit in zip(found.groups(), _UNITS, strict=True)))
