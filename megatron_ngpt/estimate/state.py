"""Bytes of weights, gradients and optimizer state on one rank, from the parameter table alone.

DeepSpeed has four ways of keeping them, chosen by stage, dtype and pp (config/deepspeed.py); one
replica alone has its own (engine/direct.py). With n parameters in a rank's model, dp ranks and fp32
unless stated, padding left out:

    stage                  weights             gradients           masters and Adam
    0, one replica         4n, the masters     4n                  8n
    one, bf16 copies       2n                  4n                  12n
    1, bf16, no pipeline   2n                  4n summed, 2n new   12n / dp
    1 otherwise            4n                  4n                  12n / dp
    2                      2n bf16, 4n fp32    4n / dp             12n / dp
    3                      4n / dp             4n / dp             12n / dp

Source: counted in DeepSpeed 0.19.8; tests/estimate/test_state.py holds every number against an
engine, byte by byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

from megatron_ngpt.config import Config, ModelConfig
from megatron_ngpt.config.deepspeed import (
    BUCKET,
    deepspeed_config,
    needs_deepspeed,
    uses_low_precision_copy,
)
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.part import Part
from megatron_ngpt.model.spec import ParameterSpec, parameter_count, parameter_table
from megatron_ngpt.parallel.shard import local_shard
from megatron_ngpt.parallel.stages import stage_map

FP32, BF16 = 4, 2
_ALIGNMENT = 2  # elements to whose multiple DeepSpeed pads each rank's part of a flat group


def rank_parameters(config: Config, degrees: Degrees, pp_index: int) -> list[ParameterSpec]:
    """The parameters whose pieces a rank holds, in the model's order."""
    return list(_parameters(config.model, _parts(config, pp_index)))


def _parts(config: Config, pp_index: int) -> tuple[Part, ...]:
    stages = stage_map(config)
    return tuple(stages.parts[number] for number in stages.of_rank(pp_index))


# of values, by values: a proposal of topologies asks for the same ones hundreds of times
@lru_cache(maxsize=128)
def _parameters(model: ModelConfig, parts: tuple[Part, ...]) -> tuple[ParameterSpec, ...]:
    layers = {layer for part in parts for layer in part.layers}

    def held(name: str) -> bool:
        if name.startswith("blocks."):
            return int(name.split(".")[1]) in layers
        if name.startswith("embed."):
            return any(part.first for part in parts)
        return any(part.last for part in parts)

    return tuple(spec for name, spec in parameter_table(model).items() if held(name))


@lru_cache(maxsize=512)
def _sizes(
    model: ModelConfig, parts: tuple[Part, ...], tp: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Elements of each scaling vector and of each matrix, tp's share."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for spec in _parameters(model, parts):
        shape = local_shard(spec, Degrees(pp=1, dp=1, cp=1, tp=tp), 0).shape
        sizes[spec.group == "vector"].append(math.prod(shape))
    return tuple(sizes[True]), tuple(sizes[False])


def _muon(config: Config, pp_index: int) -> tuple[int, ...]:
    """Elements of each matrix that Muon steps; tp is 1 there."""
    held = rank_parameters(config, Degrees(pp=1, dp=1, cp=1, tp=1), pp_index)
    return tuple(
        math.prod(spec.shape) for spec in held if len(config.optim.averages(spec.group)) == 1
    )


@dataclass(frozen=True)
class RankState:
    """What one rank keeps from step to step.

    Attributes:
        vectors: elements of each scaling vector, in the optimizer's order, tp's share.
        matrices: elements of each matrix, likewise, tp's padding included.
        dp: ranks that share the optimizer state, those of cp among them.
        stage: of ZeRO; 0 for one replica alone.
        copies: whether the matrices are bf16 copies beside fp32 masters.
        settings: DeepSpeed's ``zero_optimization`` section.
        remembers: whether it keeps the matrices before a step, to cap angles.
        muon: elements of each matrix of which Muon keeps one average, not two and a count.
    """

    vectors: tuple[int, ...]
    matrices: tuple[int, ...]
    dp: int
    stage: int
    copies: bool
    settings: dict[str, Any]
    remembers: bool = False
    muon: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Config, degrees: Degrees, pp_index: int) -> RankState:
        """State of the ranks of one pipeline index; the others' differ in no byte."""
        vectors, matrices = _sizes(config.model, _parts(config, pp_index), degrees.tp)
        deepspeed = deepspeed_config(config, degrees.dp, parameter_count(config.model))
        return cls(
            vectors=vectors,
            matrices=matrices,
            dp=degrees.replicas,
            stage=config.optim.zero_stage if needs_deepspeed(config, degrees.replicas) else 0,
            copies=uses_low_precision_copy(config),
            settings=deepspeed["zero_optimization"],
            remembers=config.optim.angle_cap > 0,
            muon=_muon(config, pp_index),
        )

    @cached_property
    def parameters(self) -> int:
        """Elements of the rank's model, whichever rank keeps them between uses."""
        return sum(self.vectors) + sum(self.matrices)

    @property
    def weights(self) -> int:
        """Bytes of the parameters that forward and backward read."""
        matrix = BF16 if self.copies else FP32
        if self.stage == 0:
            return FP32 * sum(self.vectors) + matrix * sum(self.matrices)
        if self.stage < 3:
            vectors, matrices = (self.dp * size for size in self._partitions())
            return FP32 * vectors + matrix * matrices
        return FP32 * (sum(self._partitions()) + sum(self._persistent()))

    @property
    def optimizer(self) -> int:
        """Bytes of the fp32 masters, where they are not the weights, and of the averages; of the
        matrices before the step, where angles are capped."""
        if self.stage == 0:  # and one step count per parameter
            before = FP32 * sum(self.matrices) * self.remembers
            counts = len(self.vectors) + len(self.matrices)
            masters = FP32 * sum(self.matrices) * self.copies
            spared = FP32 * (sum(self.muon) + len(self.muon))
            return masters + 2 * FP32 * self.parameters + FP32 * counts + before - spared
        vectors, matrices = self._partitions()
        return 3 * FP32 * (vectors + matrices) + FP32 * matrices * self.remembers + 2 * FP32

    def gradients(self, dp_index: int | None = None) -> int:
        """Bytes of the gradient that a step accumulates, at the end of its last backward.

        Args:
            dp_index: whose; the largest among the ranks when not given. Stage 2 keeps parameters
                that straddle two partitions whole on both ranks.
        """
        if self.stage == 3:
            return FP32 * sum(self._partitions())
        if self.stage == 2:
            return FP32 * self._touched(dp_index)
        if self.copies and self.stage == 1:
            padded = self.dp * sum(self._partitions())
            return FP32 * (padded + sum(self.vectors)) + BF16 * sum(self.matrices)
        return FP32 * self.parameters

    @property
    def backward_buffers(self) -> int:
        """Bytes that DeepSpeed allocates for the backward, beside gradients and activations.

        Stages 1 to 3 copy gradients into a bucket before reducing it; stage 3 also
        gathers weights and keeps up to ``stage3_max_live_parameters`` of them.
        """
        if self.stage == 0 or (self.stage == 1 and self.copies):
            return 0
        bucket = FP32 * self._bucket
        if self.stage == 1:
            return bucket
        reduced = FP32 * min(self._bucket, self.parameters)  # the flat copy that is communicated
        if self.stage == 2:
            return bucket + reduced
        gathered = min(self.live_parameters, self.parameters - sum(self._persistent()))
        return bucket + reduced + (FP32 * gathered if self.dp > 1 else 0)

    @property
    def step_buffers(self) -> int:
        """Bytes beside gradients while these are reduced after the backward, and in the step."""
        if self.stage == 0 or (self.stage == 1 and self.copies):
            return FP32 * min(BUCKET, self.parameters) if self.dp > 1 else 0
        bucket = FP32 * self._bucket
        if self.stage == 1:
            return bucket + FP32 * (min(self._bucket, self.parameters) + self._touched(None))
        held = bucket if self.stage == 3 else 0
        return held + FP32 * max(self._partitions())  # one group's gradient, flattened for Adam

    @property
    def live_parameters(self) -> int:
        """Elements that stage 3 keeps gathered from a use in forward to the one in backward."""
        return int(self.settings.get("stage3_max_live_parameters", 1e9))

    @property
    def persistence_threshold(self) -> int:
        """Elements up to which stage 3 keeps a parameter gathered from step to step."""
        return int(self.settings.get("stage3_param_persistence_threshold", 1e5))

    @property
    def _bucket(self) -> int:
        return int(self.settings["reduce_bucket_size"])

    def _partitions(self) -> list[int]:
        """Elements of one rank's part of the two flat groups, padding included."""
        if self.stage == 3:
            return [sum(-(-n // self.dp) for n in group) for group in (self.vectors, self.matrices)]
        unit = _ALIGNMENT * self.dp
        return [-(-sum(group) // unit) * _ALIGNMENT for group in (self.vectors, self.matrices)]

    def _persistent(self) -> Iterator[int]:
        """Elements of the small parameters that stage 3 keeps gathered, padding included.

        One rank alone gathers nothing: its partitions are the parameters.
        """
        for size in (*self.vectors, *self.matrices) if self.dp > 1 else ():
            if size <= self.persistence_threshold:
                yield -(-size // self.dp) * self.dp

    def _touched(self, dp_index: int | None) -> int:
        """Elements of all parameters of which a rank's partitions hold a piece, and padding."""
        totals = [0] * self.dp
        for group, partition in zip((self.vectors, self.matrices), self._partitions(), strict=True):
            padding = self.dp * partition - sum(group)
            for first, last, size in _spans(group, partition):
                for index in range(first, last + 1):
                    totals[index] += size
            for index in range(self.dp - 1, -1, -1):  # padding fills the last partitions
                totals[index] += min(padding, partition)
                padding -= min(padding, partition)
        return max(totals) if dp_index is None else totals[dp_index]


def _spans(sizes: Sequence[int], partition: int) -> Iterator[tuple[int, int, int]]:
    """First and last partition that each of consecutive parameters lies in, and its size."""
    for stop, size in zip(accumulate(sizes), sizes, strict=True):
        yield (stop - size) // partition, (stop - 1) // partition, size
