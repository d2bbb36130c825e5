"""One tree of frozen dataclasses, its command line, its checks, and the DeepSpeed dictionary."""

from megatron_ngpt.config.checks import check, check_batch, check_plan, fit_micro_batch
from megatron_ngpt.config.cli import config_from, load_config, parse_config, save_config
from megatron_ngpt.config.data import (
    IGNORED,
    Blend,
    CorpusConfig,
    DataConfig,
    StageConfig,
    blends_of,
    corpora_of,
)
from megatron_ngpt.config.duration import seconds_of
from megatron_ngpt.config.model import ModelConfig, ScaleConfig, completed
from megatron_ngpt.config.phases import Phase, last_trained, phases, step_at, token_at, unreached
from megatron_ngpt.config.run import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    CheckpointConfig,
    EngineConfig,
    EvalConfig,
    LoggingConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.config.tree import Config

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_ROWS",
    "IGNORED",
    "Blend",
    "CheckpointConfig",
    "Config",
    "CorpusConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "Phase",
    "ScaleConfig",
    "StageConfig",
    "TrainConfig",
    "blends_of",
    "check",
    "check_batch",
    "check_plan",
    "completed",
    "config_from",
    "corpora_of",
    "fit_micro_batch",
    "last_trained",
    "load_config",
    "parse_config",
    "phases",
    "save_config",
    "seconds_of",
    "step_at",
    "token_at",
    "unreached",
]
