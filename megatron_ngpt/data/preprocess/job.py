"""What to make of which files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_ngpt.data.bulk import EncoderName
from megatron_ngpt.data.preprocess.special import Choice
from megatron_ngpt.data.sources import Source
from megatron_ngpt.data.sources.readers import Format

SHARD_MB = 256


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """A job of preprocessing."""

    inputs: Sequence[str]
    """Files, URLs, folders, globs, and ``-`` for standard input."""

    output_prefix: str
    """Each key makes ``PREFIX_<key>_document.bin`` and ``.idx``; missing folders are made."""

    tokenizer: str
    """SentencePiece model file."""

    format: Format = "jsonl"
    """A JSON object a line, plain text, or Parquet with a document a row."""

    json_keys: Sequence[str] = ("text",)
    """Keys, or columns, whose text is encoded."""

    separator: str = ""
    """What stands between documents of plain text; "" means a document a file."""

    append_eod: bool = False
    """End every document with the tokenizer's end id."""

    special_text: Choice = "keep"
    """What becomes of a text that spells out a special token; see ``SpecialText``."""

    on_error: Literal["refuse", "skip"] = "refuse"
    """Whether a record that cannot be used ends the job or is left out and counted."""

    encoder: EncoderName = "auto"
    """Library that encodes."""

    workers: int = 0
    """Threads that encode, of each process; 0 means that all together have one per core."""

    processes: int = 1
    """Processes on this machine, each of which encodes and writes shards of its own."""

    shard_mb: float = SHARD_MB
    """MB of input after which a shard ends: what an interruption can cost each process."""

    log_interval: int = 1000
    """Documents between progress lines where stderr is no terminal."""

    def prefix(self, key: str) -> str:
        """Of the pair that a key makes."""
        return f"{self.output_prefix}_{key}_document"

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: naming the flag and the way out.
        """
        for flag, value, least in (
            ("workers", self.workers, 0),
            ("processes", self.processes, 1),
            ("shard-mb", self.shard_mb, 0.001),
            ("log-interval", self.log_interval, 1),
        ):
            if value < least:
                raise ValueError(f"--{flag} {value}: must be {least} or more")
        keys = " ".join(self.json_keys)
        if self.format == "text" and len(self.json_keys) > 1:
            raise ValueError(f"--json-keys {keys}: plain text has no keys; give one")
        if len(set(self.json_keys)) < len(self.json_keys):
            raise ValueError(f"--json-keys {keys}: a key is given twice")
        if self.separator and self.format != "text":
            raise ValueError(f"--separator is for --format text, not {self.format}")

    def identity(self, sources: Sequence[Source]) -> dict[str, Any]:
        """What the output depends on: an unfinished job goes on only where all this is equal."""
        return {
            "format": self.format,
            "json-keys": list(self.json_keys),
            "separator": self.separator,
            "append-eod": self.append_eod,
            "special-text": self.special_text,
            "shard-mb": self.shard_mb,
            "tokenizer-model": hashlib.sha256(Path(self.tokenizer).read_bytes()).hexdigest(),
            "input": [[source.path, source.size, source.modified] for source in sources],
        }


def cores() -> int:
    """Cores this process may use, where the system tells: a job often owns part of a node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
