"""MLflow. Sole user of mlflow; mlflow-skinny is enough."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_ngpt.config import Config
from megatron_ngpt.extras import require
from megatron_ngpt.run.ledger import flat

_MOST = 1000
"""Metrics that a server takes in one call."""
_PARAMS = 100


def package(experiment: str) -> ModuleType:
    """The package, or ModuleNotFoundError."""
    wanted = f"logging.mlflow_experiment = {experiment}"
    return require("mlflow", "logging", wanted, attribute="MlflowClient")


class Mlflow:
    """A run of MLflow for each start, with the run's folder as tag.

    Goes to MLFLOW_TRACKING_URI; without it to ``logging.dir/mlruns``, files that ``mlflow ui``
    reads.
    """

    def __init__(self, config: Config, resumed_at: int) -> None:
        experiment, folder = config.logging.mlflow_experiment, Path(config.logging.dir).resolve()
        mlflow = package(experiment)
        self.entities: Any = require("mlflow.entities", "logging", "logging.mlflow_experiment")
        place = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not place:
            place = (folder / "mlruns").as_uri()
            # from 3.7 on it takes files only when asked to
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client = mlflow.MlflowClient(tracking_uri=place)
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self.client.create_experiment(experiment)
        tags = {"logging.dir": str(folder), "resumed_at": str(resumed_at)}
        name = f"{folder.name} from step {resumed_at}"
        self.run = self.client.create_run(number, run_name=name, tags=tags).info.run_id
        settings = [
            self.entities.Param(name, str(value)[:500])
            for name, value in flat(config.to_dict()).items()
        ]
        for at in range(0, len(settings), _PARAMS):
            self.client.log_batch(self.run, params=settings[at : at + _PARAMS])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A metric for each."""
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(n, float(v), now, step) for n, v in values.items()]
        for at in range(0, len(metrics), _MOST):
            self.client.log_batch(self.run, metrics=metrics[at : at + _MOST])

    def close(self) -> None:
        """The run is over, however it went."""
        self.client.set_terminated(self.run)
