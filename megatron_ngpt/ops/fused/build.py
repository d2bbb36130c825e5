"""Compile the C++ operations once for this machine and keep them on disk.

The library is found again by a key of its source, the compiler, its options and the processor, so
that a folder shared by different machines holds one for each. Several ranks may start at once: one
compiles while the others wait for its lock, and the file appears whole, by a rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
# no fast-math: NaN and infinity must come out where they go in
OPTIONS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fvisibility=hidden"]
OPTIONS += ["-fno-math-errno", "-fno-trapping-math"]


class NotBuilt(Exception):
    """Why there is no library on this machine, and the way out."""


def built(source: Path = SOURCE) -> Path:
    """The compiled library of a C++ file, made now unless it is there.

    ``$CXX`` or the first of g++ and c++ compiles it, in about 10 seconds, into
    ``$XDG_CACHE_HOME/megatron_ngpt`` (``~/.cache/megatron_ngpt``).

    Raises:
        NotBuilt: no compiler, or it failed.
    """
    compiler = _compiler()
    folder = _folder()
    library = folder / f"{source.stem}-{_key(compiler, source)}.so"
    if library.exists():
        return library
    with _locked(library.with_suffix(".lock")):
        if not library.exists():
            _compile(compiler, source, library)
    return library


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "c++"]:
        found = shutil.which(name)
        if found:
            return found
    raise NotBuilt(
        f"no C++ compiler ({asked or 'g++'}) for the fused operations: install one, or set $CXX"
    )


def _folder() -> Path:
    """Where libraries are kept; a temporary folder where home cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(home).expanduser() / "megatron_ngpt"
    with suppress(OSError, RuntimeError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"megatron_ngpt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise NotBuilt(f"{folder} belongs to somebody else: set $XDG_CACHE_HOME to your own folder")
    return folder


def _key(compiler: str, source: Path) -> str:
    """Differs whenever the library would."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    sources = [source, *sorted(SOURCE.parent.glob("*.h"))]
    told = [
        *(path.read_bytes() for path in sources),
        version,
        " ".join(OPTIONS).encode(),
        _processor(),
    ]
    return hashlib.sha256(b"\0".join(told)).hexdigest()[:16]


def _processor() -> bytes:
    """What -march=native may depend on."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
        names = (b"vendor_id", b"cpu family", b"model", b"flags", b"Features", b"CPU ")
        return b"\n".join(line for line in lines if line.startswith(names))
    return b""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, where the file system can; else several compile the same."""
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        item, made = Path(folder, "ops.o"), Path(folder, "ops.so")
        _run([compiler, *OPTIONS, "-c", str(source), "-o", str(item)])
        # linked without OpenMP's library: its functions are found in torch's, already loaded, so
        # that both share one pool of threads
        _run([compiler, "-shared", str(item), "-o", str(made)])
        os.replace(made, library)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotBuilt(f"{command[0]} cannot compile the fused operations ({last})")
