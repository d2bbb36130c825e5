"""Inputs that are nearly right: bytes and JSON documents with some of it changed."""

import copy
import json
import random
from typing import Any

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -1.5, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "0",
        "x",
        "../x",
        "/etc/hostname",
        ".",
        "..",
        "a\0b",
        "\ud800",
    ),
    *("1" * 5000, [], [[]], {}, {"": {}}, [1, "x", None], {"a": [1]}),
)


def bytes_like(content: bytes, chance: random.Random) -> bytes:
    """A few changes of bits, bytes, numbers, lengths."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        _change(found, chance)
    return bytes(found)


def _change(found: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(found) + 1)
    kind = chance.randrange(7)
    if kind == 0 and at < len(found):
        found[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        size, signed = chance.choice([1, 2, 4, 8]), chance.choice(NUMBERS)
        found[at : at + size] = (signed % (1 << 8 * size)).to_bytes(size, "little")
    elif kind == 2:
        del found[at:]
    elif kind == 3:
        del found[at : at + chance.randrange(1, 20)]
    elif kind == 4:
        found[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
    elif kind == 5:
        other = chance.randrange(len(found) + 1)
        found[at:at] = found[other : other + chance.randrange(1, 40)]
    elif at < len(found):
        found[at] = chance.randrange(256)


def json_like(content: bytes, chance: random.Random) -> bytes:
    """A JSON document with values exchanged, keys gone, doubled or moved; sometimes no JSON."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return bytes_like(content, chance)
    if chance.random() < 0.1:
        return bytes_like(content, chance)
    if chance.random() < 0.01:
        return b"[" * 200  # deeper than any document of ours
    for _ in range(chance.choice([1, 1, 2, 4])):
        document = _changed(document, chance)
    try:
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return b""


def _changed(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return odd(chance)
    inside, key = chance.choice(places)
    kind = chance.randrange(5)
    if kind == 0:
        del inside[key]
    elif kind == 1:
        other, its = chance.choice(places)
        inside[key] = copy.deepcopy(other[its])
    elif kind == 2 and isinstance(inside, dict):
        inside[str(odd(chance))] = inside.pop(key)
    elif kind == 3 and type(inside[key]) in (int, float):
        inside[key] = inside[key] * chance.choice([-1, 0, 2, 2**20]) + chance.choice([0, 1, -1])
    else:
        inside[key] = odd(chance)
    return document


def odd(chance: random.Random) -> Any:
    """Some value that is rarely meant."""
    return copy.deepcopy(chance.choice(ODD))


def _places(document: Any, limit: int = 2000):
    """Containers and keys, of all values in a document."""
    left = [document] if isinstance(document, dict | list) else []
    while left and limit:
        inside = left.pop()
        keys = range(len(inside)) if isinstance(inside, list) else list(inside)
        for key in keys:
            limit -= 1
            yield inside, key
            if isinstance(inside[key], dict | list):
                left.append(inside[key])


def lines_like(content: bytes, chance: random.Random) -> bytes:
    """Lines of JSON, one of them changed."""
    lines = content.split(b"\n")
    at = chance.randrange(len(lines))
    lines[at] = json_like(lines[at], chance)
    return b"\n".join(lines)
