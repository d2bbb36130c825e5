"""Checksums of files, and renaming them so that they stay renamed."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

BLOCK = 1 << 22
"""Bytes that are read at a time."""


def crc32_of(path: Path) -> str:
    """A file's CRC-32 in hexadecimal; reads all of it."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def rename(temporary: Path, path: Path) -> None:
    """Give a file its name for good: the folder is synced, too."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
