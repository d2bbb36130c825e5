"""torch.compile of the blocks, kept on disk where the next start finds it."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from torch import nn

from megatron_ngpt.config import Config

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled(config: Config) -> Path:
    """Where torch.compile keeps what it makes: ``train.compile_cache``, a folder in it for each
    kind of processor, since torch's own key does not tell for which one code was made.

    By default torch keeps it in the node's ``/tmp``, where a requeued job does not look. Ranks
    share the folder: torch writes each file under another name or under a lock. A folder that the
    environment names (``TORCHINDUCTOR_CACHE_DIR``) goes before it.
    """
    root = Path(config.train.compile_cache or Path(config.logging.dir) / "compile_cache")
    return Path(os.environ.setdefault(_FOLDER, str(root.absolute() / _processor())))


def compile_blocks(blocks: nn.ModuleDict) -> None:
    """Compile every block in place, at its first forward; all of them share what is compiled."""
    for block in blocks.values():
        block.compile()


def _processor() -> str:
    told = os.uname().machine.encode()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0].splitlines()
        told += b"".join(x for x in lines if x.startswith((b"model name", b"flags", b"Features")))
    return hashlib.sha256(told).hexdigest()[:12]
