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

from megatron_ngpt.run.durable import INDEX, DamagedCheckpoint

FORMAT = 1
MASTER = "master"
AVERAGES = ("exp_avg", "exp_avg_sq")
"""Kinds of tensors: ``master/NAME`` and what Adam keeps of each."""
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
        content: dict = json.loads(path.read_text(encoding="utf-8"))
        version, claimed = int(content["format"]), int(content.pop("crc32"))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DamagedCheckpoint(f"{path}: {err!r}") from err
    if claimed != checksum(content):
        raise DamagedCheckpoint(f"{path}: its content is not what was written (checksum)")
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}, this version reads format {FORMAT}")
    return content


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
