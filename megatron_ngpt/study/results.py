"""Rows of results, one JSON object a line, and how a finished run becomes one."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_ngpt.study.plan import Run

Row = dict[str, Any]


def read_rows(paths: Iterable[Path]) -> dict[str, Row]:
    """Rows by their run's id, of every file that is there; the first file wins, and others add what
    it lacks."""
    rows: dict[str, Row] = {}
    for path in paths:
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = _parsed(line)
                if row is not None:
                    rows[row["id"]] = row | rows.get(row["id"], {})
    return {id_: row for id_, row in rows.items() if "loss" in row}


def _parsed(line: str) -> Row | None:
    """None for a line that a killed process did not finish: its run is done again."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "id" in row else None


def add_row(path: Path, row: Row) -> None:
    """Append a row; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        file.write(("" if not text or text.endswith("\n") else "\n") + json.dumps(row) + "\n")


def losses(rows: dict[str, Row]) -> dict[str, float]:
    """Final validation loss by id; infinite where a run diverged."""
    return {id_: math.inf if r["loss"] is None else r["loss"] for id_, r in rows.items()}


def row_of(run: Run, metrics: Path, cpu_seconds: float, code: str, diverged: str = "") -> Row:
    """What is kept of a finished run.

    Args:
        run: which one.
        metrics: its metrics.jsonl.
        cpu_seconds: user and system time of all its attempts that ended.
        code: version of the code that ran it.
        diverged: why it ended early, empty when it went through.

    Raises:
        ValueError: it was never evaluated.
    """
    text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    records = [json.loads(line) for line in text.splitlines()]
    curve = [[r["tokens"], round(r["valid_loss"], 5)] for r in records if "valid_loss" in r]
    if not curve and not diverged:
        raise ValueError(f"{metrics}: no validation loss: a study needs eval.every")
    return {
        "id": run.id,
        "contestant": run.contestant,
        "log2_lr": run.log2_lr,
        "seed": run.seed,
        "settings": run.settings,
        "corpus": run.corpus,
        "code": code,
        "tokens": records[-1]["tokens"] if records else 0,
        "steps": records[-1]["step"] if records else 0,
        "cpu_seconds": round(cpu_seconds, 1),
        "loss": None if diverged else curve[-1][1],
        "diverged": diverged,
        "curve": curve,
        "train_curve": _means(records, len(curve) or 20),
    }


def _means(records: Sequence[Row], parts: int) -> list[list[float]]:
    """Mean training loss over equal parts of the run, at the tokens where each ends."""
    size = max(1, len(records) // max(1, parts))
    cut = [records[n : n + size] for n in range(0, len(records) - size + 1, size)]
    return [
        [part[-1]["tokens"], round(sum(r["loss"] for r in part) / len(part), 5)] for part in cut
    ]
