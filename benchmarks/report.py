"""How results leave a benchmark: the facts around them, a Markdown table, one JSON file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def facts(device: torch.device) -> dict[str, Any]:
    """Command, date, machine and versions: what a figure means nothing without."""
    cuda = device.type == "cuda"
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": metadata.version("deepspeed"),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_spread(values: dict[str, float], scale: float = 1.0, digits: int = 1) -> str:
    """``median (q25 to q75)``."""
    median, low, high = (f"{values[k] * scale:.{digits}f}" for k in ("median", "q25", "q75"))
    return f"{median} ({low} to {high})"


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Write the results where ``--json`` says, if it says."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
