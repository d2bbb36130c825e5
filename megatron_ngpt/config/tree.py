"""The whole configuration: one frozen tree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from megatron_ngpt.config.data import DataConfig
from megatron_ngpt.config.model import ModelConfig
from megatron_ngpt.config.run import (
    CheckpointConfig,
    EngineConfig,
    EvalConfig,
    LoggingConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pretrain nGPT, or its GPT baseline, on an indexed dataset."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def to_dict(self) -> dict:
        """Plain nested dictionary of every field, as saved with a run."""
        return dataclasses.asdict(self)

    @property
    def checkpoint_dir(self) -> str:
        """Folder of the checkpoints, also when checkpoint.dir is left empty."""
        return self.checkpoint.dir or f"{self.logging.dir}/checkpoints"
