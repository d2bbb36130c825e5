"""One interface for all of them, and which of them a configuration asks for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from megatron_ngpt.config import Config
from megatron_ngpt.console import say
from megatron_ngpt.run.sinks import mlflow, prometheus, tensorboard, wandb


class Sink(Protocol):
    """A program that is told numbers by name, step by step, on rank 0."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take values of a step; a step may come twice, with other names."""

    def close(self) -> None:
        """The run ends."""


def check_sinks(config: Config) -> None:
    """Raise ModuleNotFoundError for the first one that is asked for and has no package."""
    for _, package, _ in _asked(config):
        package()


def open_sinks(config: Config, resumed_at: int) -> list[Sink]:
    """Those that a configuration asks for, each of which may fail without ending the run.

    Args:
        config: the run's.
        resumed_at: steps done before; later ones that were told before do not count.
    """
    return [Steady(name, make(config, resumed_at)) for name, _, make in _asked(config)]


Asked = tuple[str, Callable[[], Any], Callable[[Config, int], Sink]]


def _asked(config: Config) -> Iterator[Asked]:
    """Name, import and opening of each."""
    telling = config.logging
    if telling.tensorboard:
        yield "tensorboard", tensorboard.package, tensorboard.TensorBoard
    if telling.wandb_project:
        yield "wandb", lambda: wandb.package(telling.wandb_project), wandb.Wandb
    if telling.mlflow_experiment:
        yield "mlflow", lambda: mlflow.package(telling.mlflow_experiment), mlflow.Mlflow
    if telling.prometheus:
        yield "prometheus", lambda: prometheus.package(telling.prometheus), prometheus.Prometheus


class Steady:
    """A sink whose failure is told once and does not end the run: a disk, a server, a bug of it."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.sink, self.failures = name, sink, 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Pass it on."""
        self._try(lambda: self.sink.write(step, values))

    def close(self) -> None:
        """Pass it on, and tell how often it failed."""
        self._try(self.sink.close)
        if self.failures:
            say(f"{self.name}: {self.failures} records were not taken", sys.stderr)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as err:
            if not self.failures:
                say(f"{self.name}: {err!r}; the run goes on", sys.stderr)
            self.failures += 1


def flat(figures: Mapping[str, Any], at: str = "") -> dict[str, float]:
    """Nested figures as numbers by name: ``scales/s_qk/mean/layer_03``; a list of one has no
    number."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{at}{name}/")
        elif not isinstance(value, list):
            found[at + name] = float(value)
        elif len(value) == 1:
            found[at + name] = float(value[0])
        else:
            found |= {f"{at}{name}/layer_{n:02d}": float(v) for n, v in enumerate(value)}
    return found
