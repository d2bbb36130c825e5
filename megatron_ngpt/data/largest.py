"""The largest id of a corpus that nobody has written down: read once, then remembered."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from megatron_ngpt.data.indexed.reader import largest_of
from megatron_ngpt.data.known import Dataset
from megatron_ngpt.plain_json import parse_object

_BLOCK = 1 << 24
_TOLD = 1 << 32


def largest_id(dataset: Dataset, cache_dir: str = "") -> int:
    """The largest id in a corpus.

    Kept in ``PREFIX.largest.json`` beside it, or in ``cache_dir`` where its folder cannot be
    written, until the tokens' file changes. Of several processes one reads, the others wait.
    """
    status = os.stat(dataset.files[0])
    version = [status.st_size, status.st_mtime_ns, dataset.dtype.name]
    try:
        file = _open(dataset.prefix, cache_dir)
    except OSError:
        return _read(dataset)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: read it as often as there are processes
            return _read(dataset)
        known = _known(file)
        if known.get("version") == version and type(known.get("largest_id")) is int:
            return int(known["largest_id"])
        found = _read(dataset)
        file.seek(0)
        file.truncate()
        json.dump({"version": version, "largest_id": found}, file)
        return found


def _open(prefix: str, cache_dir: str) -> IO[str]:
    try:
        return open(f"{prefix}.largest.json", "a+", encoding="utf-8")
    except OSError:
        if not cache_dir:
            raise
        name = hashlib.blake2b(os.path.abspath(prefix).encode(), digest_size=8).hexdigest()
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        return open(Path(cache_dir) / f"{name}.largest.json", "a+", encoding="utf-8")


def _known(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        return parse_object(file.read())
    except ValueError:  # empty, or its writer was killed
        return {}


def _read(dataset: Dataset) -> int:
    size = dataset.token_count * dataset.dtype.itemsize
    if size > _TOLD:
        told = f"reading {dataset.prefix} for its largest id, as no manifest tells it"
        print(f"{told}: {size / 1e9:.0f} GB, once", file=sys.stderr, flush=True)
    starts = range(0, dataset.token_count, _BLOCK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return max(pool.map(lambda at: _largest(dataset, at), starts), default=-1)


def _largest(dataset: Dataset, start: int) -> int:
    return largest_of(dataset.tokens(start, min(start + _BLOCK, dataset.token_count)))
