"""The DeepSpeed dictionary, derived from the configuration and written nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_ngpt.config.tree import Config

BUCKET = 500_000_000
"""Most elements that DeepSpeed reduces at a time, its own default."""


def uses_low_precision_copy(config: Config) -> bool:
    """Whether DeepSpeed keeps bf16 parameters beside fp32 master shards.

    ZeRO 1 and 2 replicate the parameters, so a bf16 copy saves memory and traffic. At stage 0 every
    rank holds every master anyway, and at stage 3 the partitions are the masters: there the
    parameters stay fp32 and are cast where they are used. So they do with a pipeline, whose
    schedules add up gradients in the parameters' own dtype, which has to be fp32.
    """
    replicated = config.optim.zero_stage in (1, 2) and config.parallel.pp == 1
    return config.train.dtype == "bf16" and replicated


def needs_deepspeed(config: Config, replicas: int) -> bool:
    """Whether the step runs through DeepSpeed: with ranks to share something among, or when
    engine.deepspeed_overrides asks something of it. One replica alone has nothing to partition,
    reduce or gather (engine/direct.py), whatever optim.zero_stage is.

    Args:
        config: of the run.
        replicas: ranks that see other tokens, dp * cp.
    """
    return replicas > 1 or bool(config.engine.deepspeed_overrides)


def deepspeed_config(config: Config, dp: int, parameters: int = BUCKET) -> dict[str, Any]:
    """DeepSpeed's configuration for this run on ``dp`` data-parallel ranks.

    The file named by engine.deepspeed_overrides is merged over it, key by key.

    Args:
        config: of the run.
        dp: ranks that share the optimizer state.
        parameters: elements of the whole model.

    Raises:
        ValueError: the overrides are no JSON object, or change what another setting decides.
    """
    train, optim = config.train, config.optim
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        # a pipeline runs all micro-batches before DeepSpeed sees a gradient
        "gradient_accumulation_steps": 1
        if config.parallel.pp > 1
        else train.global_batch // (train.micro_batch * dp),
        # stage 0 is clipped by the engine, which wants to know the norm
        "gradient_clipping": optim.grad_clip if optim.zero_stage else 0.0,
        "zero_optimization": {
            "stage": optim.zero_stage,
            "overlap_comm": False,
            # allocated whole, whatever the model's size
            "reduce_bucket_size": min(parameters, BUCKET),
            # the projection reads which piece of a matrix a rank holds; this would shuffle pieces
            "round_robin_gradients": False,
            # one sub-group, so that ZeRO-3 steps and projects all matrices at once
            "sub_group_size": int(1e12),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if uses_low_precision_copy(config):
        made["bf16"] = {"enabled": True}
        made["data_types"] = {"grad_accum_dtype": "fp32"}
        made["communication_data_type"] = "fp32"
    if config.engine.deepspeed_overrides:
        _merge(made, _read(config.engine.deepspeed_overrides), config.engine.deepspeed_overrides)
    return made


_OWNED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch",
    "gradient_clipping": "optim.grad_clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "fp16": "train.dtype",
    "bf16": "train.dtype",
    "zero_optimization.stage": "optim.zero_stage",
    "zero_optimization.round_robin_gradients": "nothing: the projection needs it off",
}

_SHARDS = "the engine reads and projects ZeRO's own fp32 shards, which it would move elsewhere"
_UNABLE = {
    **{f"zero_optimization.offload_{what}": _SHARDS for what in ("optimizer", "param")},
    **{
        f"zero_optimization.cpu_offload{what}": _SHARDS
        for what in ("", "_params", "_use_pin_memory")
    },
    **{
        f"zero_optimization.mics_{what}": _SHARDS
        for what in ("shard_size", "hierarchical_params_gather")
    },
    "zero_optimization.zero_hpz_partition_size": _SHARDS,
    "zero_optimization.zenflow": "it steps parts of the optimizer at other times",
    "zero_force_ds_cpu_optimizer": "the optimizer is the engine's own",
    "amp": "precision is train.dtype",
    "torch_autocast": "precision is train.dtype",
    "tensor_parallel": "the engine has its own: parallel.tp",
    "pipeline": "the engine has its own: parallel.pp",
    "sequence_parallel_size": "the engine has its own: parallel.cp",
    "compression_training": "it changes the model's layers",
    "quantize_training": "it changes the model's layers",
    "hybrid_engine": "it changes the model's layers",
}
"""What DeepSpeed offers and this engine cannot do, and why."""


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as err:
        raise ValueError(
            f"engine.deepspeed_overrides = {path}: not readable as JSON: {err}"
        ) from err
    if not isinstance(found, dict):
        raise ValueError(f"engine.deepspeed_overrides = {path}: must hold one JSON object")
    return found


def _merge(into: dict[str, Any], over: dict[str, Any], path: str, at: str = "") -> None:
    for key, value in over.items():
        name = f"{at}{key}"
        if name in _OWNED:
            raise ValueError(
                f"engine.deepspeed_overrides = {path} sets {name}, which belongs to "
                f"{_OWNED[name]}: remove it there and set that instead"
            )
        if name in _UNABLE:
            raise ValueError(
                f"engine.deepspeed_overrides = {path} sets {name}, which this engine cannot do: "
                f"{_UNABLE[name]}: remove it there"
            )
        if not isinstance(into.get(key), dict):
            into[key] = value
        elif isinstance(value, dict):
            _merge(into[key], value, path, f"{name}.")
        else:
            raise ValueError(
                f"engine.deepspeed_overrides = {path} sets {name} = {value}, which is a section: "
                "name the keys inside it"
            )
