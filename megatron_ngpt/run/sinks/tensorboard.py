"""TensorBoard events. Sole user of its writer, which comes with torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from megatron_ngpt.config import Config
from megatron_ngpt.extras import require


def package() -> ModuleType:
    """The writer's module, or ModuleNotFoundError."""
    return require("torch.utils.tensorboard", "logging", "logging.tensorboard = true")


class TensorBoard:
    """Events in ``logging.dir/tensorboard``; steps after the resumed one are not shown twice."""

    def __init__(self, config: Config, resumed_at: int) -> None:
        folder = Path(config.logging.dir) / "tensorboard"
        self.writer = package().SummaryWriter(str(folder), purge_step=resumed_at + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar for each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what waits."""
        self.writer.close()
