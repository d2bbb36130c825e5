"""What a run tells while it runs: metrics.jsonl, a progress bar or lines, other programs."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_ngpt.config import Config, save_config
from megatron_ngpt.plain_json import parse_object
from megatron_ngpt.run.attempts import METRICS, VITALS
from megatron_ngpt.run.lines import LineFile
from megatron_ngpt.run.progress import Record, shown, steady
from megatron_ngpt.run.sinks import Sink, check_sinks, flat, open_sinks


def check_outputs(config: Config) -> None:
    """Refuse what a run could not write to, before it starts.

    Raises:
        ValueError: a folder cannot be made or written to, naming the setting.
        ModuleNotFoundError: the package of a sink that was asked for is missing.
    """
    for setting, folder in (
        ("logging.dir", Path(config.logging.dir)),
        ("checkpoint.dir", Path(config.checkpoint_dir)),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(1024))  # an empty file has room on a full disk
        except OSError as err:
            raise ValueError(f"{setting} = {folder}: no files can be made there: {err}") from err
    check_sinks(config)


class RunLog:
    """Writes each step's record; does nothing on ranks where it is not enabled.

    ``metrics.jsonl`` holds one object per step: step, loss, grad_norm, lr, tokens,
    tokens_per_second, step_seconds, targets where documents are kept apart, valid_loss where the
    step was evaluated, unit_error where it was checked. Steps after ``resumed_at``, written by an
    attempt that died, go to ``metrics_undone.jsonl``. A disk that is full, or a terminal that went
    away, does not end the run.

    Args:
        config: the run's.
        resumed_at: steps done before.
        enabled: on rank 0.
        owed: whether the record of that last step is still to come.
        ends_at: when a time limit ends the run, in seconds since 1970.
        work: steps done -> how much of the run that is; its tokens where steps get more or fewer.
        guard: called before each write; raises when the run is somebody else's now.
    """

    def __init__(
        self,
        config: Config,
        resumed_at: int,
        *,
        enabled: bool,
        owed: bool = False,
        ends_at: float = math.inf,
        work: Callable[[int], float] = float,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.enabled, self.guard = config, enabled, guard
        self.takers: list[Callable[[Record], None]] = []
        self.sinks: list[Sink] = []
        self.closers: list[Callable[[], None]] = []
        self.vital_lines: LineFile | None = None
        if not enabled:
            return
        folder = Path(config.logging.dir)
        folder.mkdir(parents=True, exist_ok=True)
        guard()
        steady("config.yaml", lambda path: save_config(config, path))(folder / "config.yaml")
        self._add_jsonl(folder / METRICS, resumed_at - owed)
        self._add_vitals(folder / VITALS, resumed_at)
        self.sinks = open_sinks(config, resumed_at - owed)
        show, close = shown(config, resumed_at, ends_at, work)
        self.takers.append(show)
        self.closers += [*(sink.close for sink in self.sinks), close]

    def step(self, record: Record) -> None:
        """Hand one step's record to everyone who wants it."""
        for take in self.takers:
            take(record)
        for sink in self.sinks:
            sink.write(int(record["step"]), record)

    def vitals(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write what the model showed after a step, if anything; nested figures, by name."""
        if self.vital_lines and figures:
            self.vital_lines.write(json.dumps({"step": step, **figures}))
            values = flat(_without_ranks(figures)) if self.sinks else {}
            for sink in self.sinks:
                sink.write(step, values)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for close in self.closers:
            close()

    def _add_jsonl(self, path: Path, resumed_at: int) -> None:
        drop_after(path, resumed_at)
        lines = LineFile(path, self.guard)
        self.takers.append(lambda record: lines.write(json.dumps(record)))
        self.closers.append(lines.close)

    def _add_vitals(self, path: Path, resumed_at: int) -> None:
        drop_after(path, resumed_at)
        self.vital_lines = LineFile(path, self.guard)
        self.closers.append(self.vital_lines.close)


def _without_ranks(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Less the lists with an entry for each rank, of which there may be thousands."""
    times = figures.get("rank_seconds", {})
    kept = {name: value for name, value in times.items() if not isinstance(value, list)}
    return {**figures, "rank_seconds": kept}


def drop_after(path: Path, step: int) -> None:
    """Keep the records up to a step, move later ones to ``..._undone.jsonl``.

    A half-written last line goes. The file gets a new name's place, so that a process that still
    has it open writes to nothing.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    whole = [(line, _step_of(line)) for line in lines]
    if undone := [line for line, found in whole if found > step]:
        with undone_of(path).open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in undone))
    shorter = path.with_name(f".{path.name}")
    kept = "".join(f"{line}\n" for line, found in whole if 0 <= found <= step)
    shorter.write_text(kept, encoding="utf-8")
    shorter.rename(path)


def undone_of(path: Path) -> Path:
    """Records of steps that were done again, or given up, in the order in which that happened."""
    return path.with_name(f"{path.stem}_undone{path.suffix}")


def _step_of(line: str) -> float:
    """Step of a record, -1 of what is none."""
    try:
        step = float(parse_object(line)["step"])
        return step if math.isfinite(step) else -1
    except (ValueError, KeyError, TypeError, OverflowError):
        return -1
