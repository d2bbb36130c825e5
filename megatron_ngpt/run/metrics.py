"""What a run tells while it runs: metrics.jsonl, a progress bar or lines, optional sinks."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from tqdm import tqdm

from megatron_ngpt.config import Config, save_config
from megatron_ngpt.console import say
from megatron_ngpt.extras import require
from megatron_ngpt.run.lines import LineFile

UNDONE = "metrics_undone.jsonl"
"""Records of steps that were done again, or given up, in the order in which that happened."""

Record = dict[str, float]
Sink = Callable[[Record], None]


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
    if config.logging.tensorboard:
        _tensorboard()
    if config.logging.wandb_project:
        _wandb(config.logging.wandb_project)


def _tensorboard() -> ModuleType:
    return require("torch.utils.tensorboard", "logging", "logging.tensorboard = true")


def _wandb(project: str) -> ModuleType:
    return require("wandb", "logging", f"logging.wandb_project = {project}")


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
        self.config, self.enabled, self.ends_at, self.guard = config, enabled, ends_at, guard
        self.work = work
        self.sinks: list[Sink] = []
        self.closers: list[Callable[[], None]] = []
        if not enabled:
            return
        folder = Path(config.logging.dir)
        folder.mkdir(parents=True, exist_ok=True)
        guard()
        _steady("config.yaml", lambda path: save_config(config, path))(folder / "config.yaml")
        self._add_jsonl(folder / "metrics.jsonl", resumed_at - owed)
        if config.logging.tensorboard:
            self._add_tensorboard(folder / "tensorboard", resumed_at - owed)
        if config.logging.wandb_project:
            self._add_wandb(config.logging.wandb_project)
        self._add_progress(resumed_at)

    def step(self, record: Record) -> None:
        """Hand one step's record to every sink."""
        for sink in self.sinks:
            sink(record)

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
        self.sinks.append(lambda record: lines.write(json.dumps(record)))
        self.closers.append(lines.close)

    def _add_tensorboard(self, folder: Path, resumed_at: int) -> None:
        writer = _tensorboard().SummaryWriter(str(folder), purge_step=resumed_at + 1)

        def write(record: Record) -> None:
            for name, value in record.items():
                writer.add_scalar(name, value, int(record["step"]))

        self.sinks.append(_steady("tensorboard", write))
        self.closers.append(writer.close)

    def _add_wandb(self, project: str) -> None:
        folder = self.config.logging.dir
        run = _wandb(project).init(project=project, config=self.config.to_dict(), dir=folder)
        self.sinks.append(lambda record: run.log(record, step=int(record["step"])))
        self.closers.append(run.finish)

    def _add_progress(self, resumed_at: int) -> None:
        steps = self.config.train.steps
        if 0 < resumed_at <= steps:
            say(f"resumed at step {resumed_at} of {steps}")
        if sys.stderr.isatty():
            bar = tqdm(total=steps, initial=resumed_at, unit="step", dynamic_ncols=True)
            self.sinks.append(_steady("progress bar", _Bar(bar)))
            self.closers.append(bar.close)
        else:
            every = self.config.logging.every
            self.sinks.append(_Lines(resumed_at, steps, every, self.ends_at, self.work))


class _Bar:
    """tqdm bar with loss and speed; evaluations stay above it."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, record: Record) -> None:
        if "valid_loss" in record:
            self.bar.write(_line(record, self.bar.total))
        self.bar.set_postfix_str(
            f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s", refresh=False
        )
        self.bar.update(1)


class _Lines:
    """One line every few steps, and for every evaluation."""

    def __init__(
        self, first: int, steps: int, every: int, ends_at: float, work: Callable[[int], float]
    ) -> None:
        self.first, self.steps, self.every, self.ends_at = first, steps, every, ends_at
        self.started, self.work = time.monotonic(), work

    def __call__(self, record: Record) -> None:
        step = int(record["step"])
        if step % self.every == 0 or step == self.steps or "valid_loss" in record:
            before, now, end = (self.work(n) for n in (self.first, step, self.steps))
            left = (time.monotonic() - self.started) * (end - now) / max(1, now - before)
            words = [_line(record, self.steps), f"{_clock(left)} left"]
            if self.ends_at < math.inf:
                words.append(f"time limit in {_clock(max(0.0, self.ends_at - time.time()))}")
            say(f"{time.strftime('%F %T')}  {', '.join(words)}")


def _line(record: Record, steps: int) -> str:
    words = [f"step {int(record['step'])}/{steps}", f"loss {record['loss']:.4f}"]
    if "valid_loss" in record:
        words.append(f"valid_loss {record['valid_loss']:.4f}")
    words += [f"lr {record['lr']:.2e}", f"{record['tokens_per_second']:,.0f} tokens/s"]
    return ", ".join(words)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _steady(name: str, write: Callable[[Any], object]) -> Callable[[Any], None]:
    """The same, but a failure of disk or terminal is told once and does not end the run."""
    told: list[OSError] = []

    def steady(value: Any) -> None:
        try:
            write(value)
        except OSError as err:
            if not told:
                say(f"{name}: {err}; the run goes on", sys.stderr)
            told.append(err)

    return steady


def drop_after(path: Path, step: int) -> None:
    """Keep the records up to a step, move later ones to ``metrics_undone.jsonl``.

    A half-written last line goes. The file gets a new name's place, so that a process that still
    has it open writes to nothing.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    whole = [(line, _step_of(line)) for line in lines]
    if undone := [line for line, found in whole if found > step]:
        with path.with_name(UNDONE).open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in undone))
    shorter = path.with_name(f".{path.name}")
    kept = "".join(f"{line}\n" for line, found in whole if 0 <= found <= step)
    shorter.write_text(kept, encoding="utf-8")
    shorter.rename(path)


def _step_of(line: str) -> float:
    """Step of a record, -1 of what is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
