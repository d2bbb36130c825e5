"""The header of a safetensors file: what lies where. Without torch.

A header is taken for what it may be: of any length, of any content. So nothing is read, and nothing
is reserved, beyond what the file itself has.
"""

from __future__ import annotations

import os
from math import prod
from typing import Any, NamedTuple

from megatron_ngpt.plain_json import parse_object

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1}
"""Bytes of a value, by the name that the format gives its type."""

_MOST = 100_000_000
"""Bytes of a header, as the safetensors library has it."""


class Entry(NamedTuple):
    """A tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte of the file at which it begins."""


def read_header(handle: int) -> dict[str, Entry]:
    """Tensors of an open file, by name.

    Raises:
        ValueError: it is no such file, or a tensor is not inside of it.
    """
    size = os.fstat(handle).st_size
    start = 8 + int.from_bytes(os.pread(handle, 8, 0), "little")
    if size < 8 or start > size:
        raise ValueError("its header is cut off")
    if start > _MOST:
        raise ValueError(f"its header has {start:,} bytes, over {_MOST:,}")
    found = parse_object(os.pread(handle, start - 8, 8))
    return {n: _entry(n, e, start, size) for n, e in found.items() if n != "__metadata__"}


def _entry(name: str, entry: Any, start: int, size: int) -> Entry:
    try:
        dtype, shape, (first, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        counts = [first, end, *shape]
        whole = all(type(number) is int and number >= 0 for number in counts)
    except (KeyError, TypeError, ValueError):
        dtype, whole = "", False
    if not whole or not isinstance(dtype, str) or dtype not in SIZES:
        raise ValueError(f"its header describes no tensor as {name}")
    if end - first != prod(shape) * SIZES[dtype] or start + end > size:
        raise ValueError(f"{name} is not inside of it")
    return Entry(dtype, tuple(shape), start + first)
