"""Which files an input stands for, and their bytes as a stream."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_ngpt.data.remote import filesystem, is_url
from megatron_ngpt.extras import require

STDIN = "-"
_BUFFER = 1 << 20
# A few bytes can stand for 128 KiB, so that blocks this small still bound memory.
_ZSTANDARD_BLOCK = 1 << 14


class _Zstandard(io.RawIOBase):
    """Frames of a .zst file; unlike the package's own stream it notices one that is cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        self._package = require("zstandard", "preprocess", "reading .zst files")
        self._file, self._rest = file, b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = self._frame.unused_data if self._frame and self._frame.eof else b""
            block = block or self._file.read(_ZSTANDARD_BLOCK)
            if not block:
                break
            self._rest = self._decompress(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        if not count and self._frame and not self._frame.eof:
            raise EOFError("the file ends inside a compressed frame")
        return count

    def _decompress(self, block: bytes) -> bytes:
        if self._frame is None or self._frame.eof:
            self._frame = self._package.ZstdDecompressor().decompressobj()
        try:
            text: bytes = self._frame.decompress(block)
        except self._package.ZstdError as err:
            raise EOFError(str(err)) from err
        return text


_DECOMPRESSORS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: io.BufferedReader(_Zstandard(file), _BUFFER),
}
COMPRESSIONS = tuple(_DECOMPRESSORS)
"""Endings of names of files that are decompressed while they are read."""


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: str
    """Path, URL, or ``-`` for standard input."""

    size: int
    """Bytes on disk; 0 where that is not known before reading."""

    modified: int
    """Time of the last change in nanoseconds, to tell whether it is still the same file."""

    seekable: bool
    """Whether reading may begin in the middle."""


def find_sources(patterns: Sequence[str], endings: Sequence[str]) -> list[Source]:
    """Files that names, URLs, folders and globs stand for; those of a folder or glob sorted.

    Args:
        patterns: names, URLs, folders, globs (``**`` for any depth), or ``-`` for standard input.
        endings: which files of a folder count, with or without an ending of ``COMPRESSIONS``;
            none means all but hidden ones.

    Raises:
        ValueError: when a pattern matches no file, or two match the same one, by whatever names.
    """
    found: dict[tuple[object, ...], tuple[str, str]] = {}
    for pattern in patterns:
        for path in _expand(pattern, endings):
            key = _identity(path)
            if key in found:
                before, its = found[key]
                name = path if path == before else f"{path}, which is {before} by another name,"
                raise ValueError(
                    f"--input {pattern!r}: {name} was already given by {its!r} and would be read "
                    "twice; narrow one of the two"
                )
            found[key] = path, pattern
    return [_source(path) for path, _ in found.values()]


def open_bytes(path: str) -> IO[bytes]:
    """A file's content as a stream, decompressed as its name says.

    Raises:
        ModuleNotFoundError: when the package for its kind is not installed.
        OSError: when it cannot be opened.
    """
    file = _open_raw(path)
    decompress = _DECOMPRESSORS.get(_compression(path))
    return decompress(file) if decompress else file


def _open_raw(path: str) -> IO[bytes]:
    if path == STDIN:
        return sys.stdin.buffer
    if is_url(path):
        files, name = filesystem(path)
        opened: IO[bytes] = files.open(name, "rb")
        return opened
    return open(path, "rb", buffering=_BUFFER)


def _expand(pattern: str, endings: Sequence[str]) -> list[str]:
    if pattern == STDIN or (is_url(pattern) and not glob.has_magic(pattern)):
        return [pattern]
    if is_url(pattern):
        files, name = filesystem(pattern)
        names = sorted(files.unstrip_protocol(match) for match in files.glob(name))
    elif Path(pattern).exists():
        names = [pattern]
    else:
        names = sorted(glob.glob(pattern, recursive=True))
    # A folder that a glob meets on its way is no folder that was asked for.
    folder = names == [pattern] and os.path.isdir(pattern)
    paths = list(_below(pattern, endings)) if folder else [n for n in names if not os.path.isdir(n)]
    if not paths:
        kinds = f" whose name ends in {' or '.join(endings)}" if endings else ""
        reason = f"no file in it{kinds}" if folder else "only folders" if names else "no such file"
        raise ValueError(f"--input {pattern!r}: {reason}")
    return paths


def _below(folder: str, endings: Sequence[str]) -> Iterator[str]:
    """Files in a folder and those below, through links; a link back to where one is, is none."""
    allowed = tuple(end + more for end in endings for more in ("", *COMPRESSIONS))
    above = {folder: {_folder_identity(folder)}}
    for here, folders, names in os.walk(folder, followlinks=True):
        way = above.pop(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            path = os.path.join(here, name)
            identity = _folder_identity(path)
            if identity in way:
                folders.remove(name)
            else:
                above[path] = way | {identity}
        for name in sorted(names):
            if name.endswith(allowed) if allowed else not name.startswith("."):
                yield os.path.join(here, name)


def _folder_identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _identity(path: str) -> tuple[object, ...]:
    """What is the same for all names of a file: links, absolute and relative paths, file://."""
    if path != STDIN and is_url(path):
        files, name = filesystem(path)
        if "file" not in (files.protocol, *files.protocol):
            return (files.unstrip_protocol(name),)
        path = name
    try:
        status = os.fstat(sys.stdin.fileno()) if path == STDIN else os.stat(path)
    except (OSError, ValueError):  # said where it is opened
        return (path,)
    return status.st_dev, status.st_ino


def _source(path: str) -> Source:
    if path == STDIN:
        return Source(path, 0, 0, seekable=False)
    if is_url(path):
        files, name = filesystem(path)
        if not files.exists(name):
            raise ValueError(f"--input {path!r}: no such file")
        return Source(path, files.size(name) or 0, 0, seekable=not _compression(path))
    status = os.stat(path)
    regular = stat.S_ISREG(status.st_mode)
    return Source(path, status.st_size, status.st_mtime_ns, regular and not _compression(path))


def _compression(path: str) -> str:
    return next((ending for ending in COMPRESSIONS if path.endswith(ending)), "")
