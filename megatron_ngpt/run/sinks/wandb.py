"""Weights & Biases. Sole user of wandb."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from megatron_ngpt.config import Config
from megatron_ngpt.extras import require


def package(project: str) -> ModuleType:
    """The package, or ModuleNotFoundError."""
    return require("wandb", "logging", f"logging.wandb_project = {project}")


class Wandb:
    """A run of W&B for each start, those of one folder in one group.

    ``WANDB_MODE=offline`` keeps it in ``logging.dir/wandb`` for ``wandb sync``.
    """

    def __init__(self, config: Config, resumed_at: int) -> None:
        folder, project = config.logging.dir, config.logging.wandb_project
        self.run = package(project).init(
            project=project,
            config=config.to_dict(),
            dir=folder,
            group=Path(folder).resolve().name,
            name=f"{Path(folder).resolve().name} from step {resumed_at}",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step come together there, however many calls bring them."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is sent or on disk."""
        self.run.finish()
