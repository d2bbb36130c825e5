"""glibc's allocator keeps what a step frees for the next one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_MAPPED_FROM = 1 << 25
"""The most that glibc allows; of more, mallopt takes no notice and says yes all the same. Keeping
larger blocks (M_MMAP_MAX = 0) would cost several times their size: before glibc 2.38 an aligned
block that was freed is too small by some bytes for the next one of its size, until its
neighbours are free as well."""


def keep_freed_memory(environ: Mapping[str, str] | None = None) -> bool:
    """Let malloc keep its heap, of blocks below 32 MiB, instead of giving the end of it back.

    By default glibc returns what is free there from 64 MiB on, and the kernel fills the same pages
    with zeros in every step. Costs memory: what was needed once stays with the process.

    Returns:
        Whether it was done: not where the environment sets malloc up itself (``MALLOC_*_``,
        ``GLIBC_TUNABLES``), nor without glibc.
    """
    env = os.environ if environ is None else environ
    named = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_PAD_")
    if any(name.startswith(named) for name in env) or "malloc" in env.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MAPPED_FROM) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
