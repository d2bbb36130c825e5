"""Files behind URLs, and pairs of them kept on a local disk. Sole home of fsspec."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

from megatron_ngpt.extras import require


def is_url(path: str) -> bool:
    """Whether fsspec is to open it."""
    return "://" in path


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        ModuleNotFoundError: fsspec, or what it needs for this kind of URL, is not installed.
    """
    fsspec = require("fsspec", "remote", "reading URLs")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as err:  # says which package brings that kind of URL
        raise ModuleNotFoundError(f"{url}: {err}") from err
    return found


def local_copy(url: str, folder: str) -> str:
    """Copy a pair, with its manifest, or a flat file ending in .bin, unless it is there already.

    A copy is made anew when the file behind the URL has changed. Processes of one host share it:
    one copies, the others wait.

    Args:
        url: prefix of the pair.
        folder: where copies are kept; made when it is missing.

    Returns:
        Prefix of the copy.

    Raises:
        FileNotFoundError: there is no such file behind the URL.
    """
    files, name = filesystem(url)
    here = Path(folder) / hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    here.mkdir(parents=True, exist_ok=True)
    with (here / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for end in ("",) if url.endswith(".bin") else (".bin", ".idx"):
            _copy(files, name + end, here / Path(name + end).name)
        manifest = here / f"{Path(name).name}.manifest.json"
        if files.exists(f"{name}.manifest.json"):
            _copy(files, f"{name}.manifest.json", manifest)
        else:
            manifest.unlink(missing_ok=True)
    return str(here / Path(name).name)


def _copy(files: Any, name: str, target: Path) -> None:
    version, known = files.ukey(name), Path(f"{target}.version")
    if target.exists() and known.exists() and known.read_text() == version:
        return
    known.unlink(missing_ok=True)
    temporary = f"{target}.tmp"
    files.get_file(name, temporary)
    os.replace(temporary, target)
    known.write_text(version)
