"""Bytes of files: checksums, whole and combined, copies to known places, names that stay."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 22
"""Bytes that are read at a time."""

_POLYNOMIAL = 0xEDB88320  # of CRC-32, lowest power in the highest bit
_NO_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


class Stretch(NamedTuple):
    """Bytes of a file that have been written."""

    suffix: str
    """Which file of a pair."""
    start: int
    size: int
    crc: int


def crc32_of(path: Path) -> str:
    """A file's CRC-32 in hexadecimal; reads all of it."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def crc32_combined(stretches: Iterable[Stretch], size: int) -> str:
    """CRC-32 of a file of ``size`` bytes from those of its stretches, in order, without reading it.

    Appending n bytes multiplies a CRC by x^8n modulo its polynomial, as zlib's ``crc32_combine``.
    """
    crc = position = 0
    for stretch in stretches:
        assert stretch.start == position, (stretch, position)
        crc = _times(_power(8 * stretch.size), crc) ^ stretch.crc
        position += stretch.size
    assert position == size, (position, size)
    return f"{crc:08x}"


def copy_bytes(source: Path, target: int, offset: int, size: int) -> None:
    """Copy a whole file to a place in another, within the kernel where the file systems can.

    What is written stays locked until the descriptor is closed: without a lock, NFS may write whole
    pages, and so undo what another node writes beside it.

    Args:
        source: the file, of ``size`` bytes.
        target: descriptor of the other.
        offset: where in it.
        size: bytes.
    """
    _lock(target, offset, size)
    done, in_kernel = 0, hasattr(os, "copy_file_range")
    with source.open("rb", buffering=0) as file:
        while done < size and in_kernel:
            try:
                count = os.copy_file_range(file.fileno(), target, size - done, done, offset + done)
            except OSError as err:
                if err.errno not in _NO_COPY:
                    raise
                count = 0
            in_kernel, done = count > 0, done + count
        file.seek(done)
        while block := file.read(BLOCK):
            _write_all(target, block, offset + done)
            done += len(block)
    assert done == size, (source, done, size)


def write_at(target: int, suffix: str, start: int, blocks: Iterable[np.ndarray]) -> Stretch:
    """Write blocks to a place in a file, one after another; locked as by ``copy_bytes``."""
    crc, position = 0, start
    for block in blocks:
        content = np.ascontiguousarray(block).view(np.uint8).data
        _lock(target, position, content.nbytes)
        _write_all(target, content, position)
        crc, position = zlib.crc32(content, crc), position + content.nbytes
    return Stretch(suffix, start, position - start, crc)


def publish(temporaries: Sequence[Path], paths: Sequence[Path]) -> None:
    """Give a complete .bin and .idx their names.

    An old index beside new tokens would look like a pair, so it goes before they come.
    """
    paths[1].unlink(missing_ok=True)
    rename(temporaries[0], paths[0])
    rename(temporaries[1], paths[1])


def rename(temporary: Path, path: Path) -> None:
    """Give a file its name for good: the folder is synced, too."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lock(file: int, start: int, size: int) -> None:
    if size:  # 0 would mean all that follows
        fcntl.lockf(file, fcntl.LOCK_EX, size, start)


def _write_all(target: int, content: memoryview | bytes, offset: int) -> None:
    view = memoryview(content)
    while view.nbytes:
        count = os.pwrite(target, view, offset)
        view, offset = view[count:], offset + count


def _times(a: int, b: int) -> int:
    """Product of two polynomials modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _power(exponent: int) -> int:
    """x to a power."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _times(square, result)
        square, exponent = _times(square, square), exponent >> 1
    return result
