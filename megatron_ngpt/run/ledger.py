"""``ledger.jsonl``: with which settings, code and data each start of a run went on. Without torch.

One line a start that came so far as to train. The line that counts for a step is the last one
before it that was followed by a step which was kept.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import megatron_ngpt
from megatron_ngpt.config.yaml_file import parsed
from megatron_ngpt.run.facts import add_line, json_lines, usable

FILE = "ledger.jsonl"
PACKAGES = (
    *("torch", "deepspeed", "numpy", "safetensors", "sentencepiece", "tokenizers"),
    *("flash-attn", "transformer-engine", "triton"),
)
"""Whose versions may change what is computed."""


@dataclass(frozen=True)
class Entry:
    """A start of a run."""

    attempt: int = 0
    """Its number in attempts.jsonl."""
    started: float = 0.0
    """Seconds since 1970."""
    step: int = 0
    """Steps done when it began to train."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Every setting by its dotted name, as the command line gave it."""
    code: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    topology: dict[str, Any] = field(default_factory=dict)
    corpora: list[dict[str, Any]] = field(default_factory=list)
    """What was read, by data/identity.py."""
    accepted: list[str] = field(default_factory=list)
    """Of train.accept_changes, what applied."""
    known: bool = True
    """False of what only a checkpoint tells: the settings."""


def flat(settings: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """A tree of settings by dotted name; lists and tuples are values."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{at}{name}.")
        else:
            found[at + name] = value
    return found


def plain(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))


def read_ledger(run_dir: Path) -> list[Entry]:
    """All entries, oldest first."""
    lines = (usable(Entry, line) for line in json_lines(run_dir / FILE))
    return [Entry(**facts) for facts in lines if facts]


def record(run_dir: Path, entry: Entry) -> None:
    """Add an entry.

    Raises:
        OSError: the disk is full.
    """
    add_line(run_dir / FILE, asdict(entry))


def before(run_dir: Path, checkpoint: Path | None, step: int) -> Entry | None:
    """What was in force for the steps up to ``step``; None when there are none.

    Of a run that goes on from another one's checkpoint, or has no ledger yet, what that checkpoint
    tells.

    Raises:
        ValueError: that tells nothing.
    """
    if entries := [entry for entry in read_ledger(run_dir) if entry.step < step]:
        return entries[-1]
    saved = checkpoint / "config.yaml" if checkpoint and step else None
    if not saved or not saved.exists():
        return None
    settings = parsed(saved.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{saved}: it holds no settings; take another checkpoint")
    return Entry(settings=plain(flat(settings)), known=False)


def code_version() -> str:
    """Version of this package, with the commit where it is a checkout."""
    root = Path(megatron_ngpt.__file__).resolve().parents[1]
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = ""
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
            commit = f" {done.stdout.strip()}"
    return f"{megatron_ngpt.__version__}{commit}"


def package_versions() -> dict[str, str]:
    """Python's and that of every package of PACKAGES that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
