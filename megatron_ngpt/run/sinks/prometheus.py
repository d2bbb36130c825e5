"""A textfile for Prometheus' node_exporter. Sole user of prometheus_client."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_ngpt.config import Config
from megatron_ngpt.extras import require

_SECONDS = 5.0
"""Between two writes; node_exporter looks every 15 s or so."""


def package(path: str) -> ModuleType:
    """The package, or ModuleNotFoundError."""
    return require("prometheus_client", "logging", f"logging.prometheus = {path}")


class Prometheus:
    """The newest value of every number as a gauge ``ngpt_...{run="..."}``, in a file that is
    replaced at once.

    Numbers by layer have the label ``layer``. ``ngpt_updated_seconds`` says when it was written, so
    that an alert can tell a run that stands still.
    """

    def __init__(self, config: Config, resumed_at: int) -> None:
        self.client = package(config.logging.prometheus)
        self.path = Path(config.logging.prometheus)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.registry = self.client.CollectorRegistry()
        self.run = Path(config.logging.dir).resolve().name
        self.gauges: dict[str, Any] = {}
        self.written = -_SECONDS
        self._set("step", resumed_at)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take them; the file follows every five seconds."""
        self._set("step", step)
        for name, value in values.items():
            self._set(name, value)
        if time.monotonic() - self.written >= _SECONDS:
            self._replace()

    def close(self) -> None:
        """The last values."""
        self._replace()

    def _set(self, name: str, value: float) -> None:
        plain, _, layer = name.partition("/layer_")
        gauge = "ngpt_" + re.sub(r"\W", "_", plain)
        if gauge not in self.gauges:
            labels = ["run", "layer"] if layer else ["run"]
            self.gauges[gauge] = self.client.Gauge(gauge, plain, labels, registry=self.registry)
        self.gauges[gauge].labels(self.run, *([str(int(layer))] if layer else [])).set(value)

    def _replace(self) -> None:
        self._set("updated_seconds", time.time())
        self.client.write_to_textfile(str(self.path), self.registry)
        self.written = time.monotonic()
