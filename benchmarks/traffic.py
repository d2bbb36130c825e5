"""Bytes that a rank's collectives work on in one step: counted, and by formula."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ngpt.config import Config
from megatron_ngpt.config.deepspeed import uses_low_precision_copy
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.ngpt import Part
from megatron_ngpt.model.spec import ParameterSpec, parameter_table
from megatron_ngpt.parallel.shard import local_shard
from megatron_ngpt.parallel.stages import stage_map


class Traffic(TorchDispatchMode):
    """Adds up the bytes of every collective called inside, by operation.

    Counted is the whole tensor a collective works on: the full buffer of an all-reduce, the
    gathered side of an all-gather, the unreduced side of a reduce-scatter, and what is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        name = func.name()
        counts = name.startswith("c10d::") and "recv" not in name and "barrier" not in name
        if counts and _group_size(args) > 1:
            self.bytes[name.removeprefix("c10d::").strip("_")] += max(map(_size, args[:2]))
        return func(*args, **(kwargs or {}))


def _group_size(args: tuple[Any, ...]) -> int:
    """Ranks of the process group among a collective's arguments."""
    boxed = next(a for a in args if isinstance(a, torch.ScriptObject) and "Group" in str(a._type()))
    return dist.ProcessGroup.unbox(boxed).size()


def _size(argument: Any) -> int:
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(_size, argument)) if isinstance(argument, list | tuple) else 0


PERSISTENT = 100_000
"""DeepSpeed's default: ZeRO-3 keeps parameters smaller than this gathered from step to step."""


def expected(config: Config, degrees: Degrees, rank: int = 0) -> int:
    """Bytes by formula, for one step of one rank; docs/parallelism.md explains the terms.

    Left out: gradient norms and losses, a few bytes, and what is called once per token and float
    (vocab-parallel loss, gradients of alpha), below a hundredth of the rest.
    """
    at = degrees.coordinates(rank)
    stages = stage_map(config)
    parts = [stages.parts[number] for number in stages.of_rank(at["pp"])]
    micro_batches = config.train.global_batch // (config.train.micro_batch * degrees.dp)
    width = 2 if config.train.dtype == "bf16" else 4
    hidden = config.train.micro_batch * config.data.seq_len * config.model.width * width
    total = 0
    if degrees.dp > 1:
        specs = [s for s in parameter_table(config.model).values() if _held(s, parts)]
        total += _data_parallel(config, degrees, specs, at["tp"], micro_batches)
    if degrees.tp > 1:
        # a gather and a scatter around attention and MLP, at the embedding and before the head,
        # and as many in backward
        crossings = sum(4 * len(p.layers) + p.first + p.last for p in parts)
        total += 2 * crossings * micro_batches * hidden
    for part in parts if degrees.pp > 1 else []:
        # output on, gradient back; each rank of tp sends its tokens
        total += (2 - part.first - part.last) * micro_batches * hidden // degrees.tp
    return total


def _held(spec: ParameterSpec, parts: list[Part]) -> bool:
    """Whether one of the parts holds a parameter."""
    if spec.name.startswith("blocks."):
        return any(int(spec.name.split(".")[1]) in part.layers for part in parts)
    return any(part.first if spec.name.startswith("embed.") else part.last for part in parts)


def _data_parallel(
    config: Config, degrees: Degrees, specs: list[ParameterSpec], tp: int, micro_batches: int
) -> int:
    """Reduced gradients, gathered parameters, and the projection's squares."""
    stage = config.optim.zero_stage
    shards = {s.name: local_shard(s, degrees, tp).shape for s in specs}
    gradients = 4 * sum(map(math.prod, shards.values()))
    if stage == 0:
        return gradients
    vectors = sum(shards[s.name][1 - s.norm_dim] for s in specs if s.norm_dim is not None)
    total = 4 * vectors + gradients * (micro_batches if stage > 1 else 1)
    for spec in specs:
        low = config.train.dtype == "bf16" and not spec.keeps_fp32
        low = low and (stage == 3 or uses_low_precision_copy(config))
        size = math.prod(shards[spec.name])
        # stage 3 gathers large parameters for each forward and backward, the others once a step
        times = 2 * micro_batches if stage == 3 and size >= PERSISTENT else 1
        total += (2 if low else 4) * size * times
    return total
