"""``index.json``: which box of which tensor lies in which file, and how to know a file is whole.

Without torch: what is in a checkpoint can be told at once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.plain_json import parse_object
from megatron_ngpt.run.durable import INDEX, DamagedCheckpoint

FORMAT = 1
MASTER = "master"
"""Kind of tensors ``master/NAME``; beside it what the optimizer keeps, ``exp_avg/NAME`` ..."""
DTYPE_BYTES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"int64": 8, "int32": 4, "uint8": 1},
}
"""Bytes of a value, by the name that the index gives its type."""
_CHUNK, _THREADS = 1 << 24, 2


@dataclass(frozen=True)
class FileFacts:
    """What a file of a checkpoint must be."""

    size: int
    """Bytes."""
    crc32: int
    """CRC-32 of the whole content."""


@dataclass(frozen=True)
class Location:
    """Where one box lies."""

    file: str
    """File name inside the checkpoint."""
    key: str
    """Tensor name inside the safetensors file."""
    facts: FileFacts
    """Of the file."""


def facts_of(path: Path) -> FileFacts:
    """Read a file once for its size and checksum."""
    crc32, buffer = 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            crc32 = zlib.crc32(buffer[:size], crc32)
        return FileFacts(stream.tell(), crc32)


def checksum(content: dict) -> int:
    """CRC-32 of an index as it is without its own ``crc32``."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read_index(folder: Path) -> dict:
    """Parsed ``index.json``.

    Raises:
        DamagedCheckpoint: it is missing, or not what :func:`write_index` writes.
        ValueError: it is of another version's format.
    """
    path = folder / INDEX
    try:
        content = parse_object(path.read_text(encoding="utf-8"))
        version, claimed = int(content["format"]), int(content.pop("crc32"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as err:
        raise DamagedCheckpoint(f"{path}: {err!r}") from err
    if claimed != checksum(content):
        raise DamagedCheckpoint(f"{path}: its content is not what was written (checksum)")
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}, this version reads format {FORMAT}")
    if problem := _unsound(content):
        raise DamagedCheckpoint(f"{path}: {problem}")
    return content


def _unsound(content: dict) -> str:
    """What is not as :func:`write_index` writes it, although its checksum is right; "" if all is.

    A checksum guards against accidents. This guards what is read next: a name that leads out of the
    checkpoint's folder, a box outside its tensor.
    """
    try:
        for name, facts in content["files"].items():
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                return f"{name!r} is no name of a file in it"
            if set(facts) != {"size", "crc32"} or not _counts(facts.values()):
                return f"size and crc32 of {name} are {facts}"
        for name, tensor in content["tensors"].items():
            if tensor["dtype"] not in DTYPE_BYTES or not _counts(tensor["shape"]):
                return f"{name} is {tensor['dtype']} of shape {tensor['shape']}"
            if problem := _bad_box(tensor, content["files"]):
                return f"{name} has a box {problem}"
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        return f"it does not hold what an index holds: {err!r}"
    return ""


def _bad_box(tensor: dict, files: dict) -> str:
    """The first box that is not inside a tensor, or in no file."""
    for box in tensor["boxes"]:
        offsets, sizes = box["offsets"], box["sizes"]
        edges = zip(offsets, sizes, tensor["shape"], strict=True)
        if not _counts([*offsets, *sizes]) or any(o + s > n for o, s, n in edges):
            return f"at {offsets} of {sizes} in {tensor['shape']}"
        if box["file"] not in files or not isinstance(box["key"], str):
            return f"in {box['file']!r}"
    return ""


def _counts(values: Iterable) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def check_files(folder: Path, names: Iterable[str], content: dict, checksums: bool) -> None:
    """Compare files with the index: sizes always, checksums when asked for.

    Raises:
        DamagedCheckpoint: naming the first file that differs and how.
    """
    told = {folder / name: FileFacts(**content["files"][name]) for name in names}
    for path, expected in told.items():
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        size = path.stat().st_size
        if size != expected.size:
            raise DamagedCheckpoint(f"{path} has {size} bytes, {expected.size} were written")
    if not checksums:
        return
    with ThreadPoolExecutor(_THREADS) as threads:  # reading and zlib run without Python's lock
        for path, found in zip(told, threads.map(facts_of, told), strict=True):
            if found != told[path]:
                raise DamagedCheckpoint(f"{path}: its content is not what was written (checksum)")
