"""Where two checkpoints differ, whatever topologies wrote them, value by value. Without torch.

Both describe boxes of unsharded tensors, so two boxes are compared where they overlap, through
memory maps and a few million values at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_ngpt.engine.checkpoint.header import Entry, read_header
from megatron_ngpt.engine.checkpoint.index import MASTER, check_files, read_index
from megatron_ngpt.run.durable import DamagedCheckpoint

_CHUNK = 1 << 22
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}

Window = tuple[tuple[int, int], ...]
"""First index and one past the last, of each dimension of the unsharded tensor."""


@dataclass
class Spot:
    """Where two boxes, one of each checkpoint, overlap and are not equal."""

    window: Window
    """The smallest that has all values that differ."""
    files: tuple[str, str]
    """In which they lie; ``rank_00003_0.safetensors`` was written by rank 3."""
    count: int
    """Values that differ, bit by bit."""
    largest: float
    """Difference of those that differ most; nan where one of them is none."""
    at: tuple[int, ...]
    """Index of these."""
    values: tuple[float, float]


@dataclass
class Difference:
    """A tensor that is not the same in both."""

    name: str
    why: str = ""
    """Why it cannot be compared, if so."""
    size: int = 0
    spots: list[Spot] = field(default_factory=list)


class Opened:
    """A checkpoint's index, and its files as memory once they are asked for.

    Raises:
        DamagedCheckpoint: a file is missing or has another size than was written.
        ValueError: it is of another version's format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, content = folder, read_index(folder)
        check_files(folder, content["files"], content, checksums=False)
        self.tensors: dict[str, dict] = content["tensors"]
        self._headers: dict[str, dict[str, Entry]] = {}

    def values(self, box: dict) -> np.ndarray:
        """The values of a box, mapped and never loaded."""
        path = self.folder / box["file"]
        if box["file"] not in self._headers:
            handle = os.open(path, os.O_RDONLY)
            try:
                self._headers[box["file"]] = read_header(handle)
            except ValueError as err:
                raise DamagedCheckpoint(f"{path}: {err}") from err
            finally:
                os.close(handle)
        entry = self._headers[box["file"]].get(box["key"])
        if entry is None or list(entry.shape) != box["sizes"]:
            raise DamagedCheckpoint(f"{path}: {box['key']} is not what the index says")
        if 0 in entry.shape:
            return np.empty(entry.shape)
        dtype = np.dtype(_NUMPY.get(entry.dtype, "u1"))
        return np.memmap(path, dtype, "r", entry.start, entry.shape)


def differences(a: Path, b: Path) -> Iterator[Difference]:
    """Every tensor that is not the same in both checkpoints, masters first; no random states.

    Raises:
        DamagedCheckpoint: one of them is not whole.
        ValueError: one is of another version's format.
    """
    one, other = Opened(a), Opened(b)
    names = one.tensors.keys() | other.tensors.keys()
    for name in sorted(names, key=lambda name: (not name.startswith(MASTER), name)):
        if name.startswith("rng/"):
            continue  # of ranks, which may be others
        mine, theirs = one.tensors.get(name), other.tensors.get(name)
        if mine is None or theirs is None:
            yield Difference(name, f"only in {b if mine is None else a}")
        elif any(mine[fact] != theirs[fact] for fact in ("shape", "dtype")):
            told = [f"{t['dtype']} of {t['shape']}" for t in (mine, theirs)]
            yield Difference(name, f"{told[0]} in {a}, {told[1]} in {b}")
        else:
            spots = list(_spots(one, other, name))
            if spots:
                yield Difference(name, size=int(np.prod(mine["shape"])), spots=spots)


def _spots(one: Opened, other: Opened, name: str) -> Iterator[Spot]:
    bf16 = one.tensors[name]["dtype"] == "bfloat16"
    for mine in one.tensors[name]["boxes"]:
        for theirs in other.tensors[name]["boxes"]:
            window = _overlap(mine, theirs)
            if all(first < end for first, end in window):
                a = one.values(mine)[_within(window, mine)]
                b = other.values(theirs)[_within(window, theirs)]
                if (spot := _compared(a, b, window, bf16)) is not None:
                    spot.files = mine["file"], theirs["file"]
                    yield spot


def _overlap(mine: dict, theirs: dict) -> Window:
    edges = [list(zip(box["offsets"], box["sizes"], strict=True)) for box in (mine, theirs)]
    both = zip(*edges, strict=True)
    return tuple((max(a, b), min(a + n, b + m)) for (a, n), (b, m) in both)


def _within(window: Window, box: dict) -> tuple[slice, ...]:
    edges = zip(window, box["offsets"], strict=True)
    return tuple(slice(first - origin, end - origin) for (first, end), origin in edges)


def _compared(a: np.ndarray, b: np.ndarray, window: Window, bf16: bool) -> Spot | None:
    """What differs in two arrays that lie at a window; None if nothing does."""
    rows = max(1, _CHUNK // max(1, a[:1].size))
    found: Spot | None = None
    for first in range(0, len(a), rows):
        x, y = (np.ascontiguousarray(part[first : first + rows]) for part in (a, b))
        bits = f"u{x.dtype.itemsize}"
        places = np.argwhere(x.view(bits) != y.view(bits))
        if len(places):
            origin = np.array([edge[0] for edge in window])
            origin[0] += first
            found = _joined(found, _spot(x, y, places, origin, bf16))
    return found


def _spot(x: np.ndarray, y: np.ndarray, places: np.ndarray, origin: np.ndarray, bf16: bool) -> Spot:
    one, other = (_numbers(values[tuple(places.T)], bf16) for values in (x, y))
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other)
    worst = int(np.nanargmax(np.where(np.isnan(apart), np.inf, apart)))
    lows, highs = (places.min(0) + origin).tolist(), (places.max(0) + origin + 1).tolist()
    return Spot(
        window=tuple(zip(lows, highs, strict=True)),
        files=("", ""),
        count=len(places),
        largest=float(apart[worst]),
        at=tuple((places[worst] + origin).tolist()),
        values=(float(one[worst]), float(other[worst])),
    )


def _numbers(values: np.ndarray, bf16: bool) -> np.ndarray:
    """As float64, in which differences of all others are exact enough."""
    if bf16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def _joined(one: Spot | None, other: Spot) -> Spot:
    if one is None:
        return other
    edges = zip(one.window, other.window, strict=True)
    worse = other if not other.largest <= one.largest else one  # nan is the worst
    return Spot(
        window=tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in edges),
        files=one.files,
        count=one.count + other.count,
        largest=worse.largest,
        at=worse.at,
        values=worse.values,
    )
