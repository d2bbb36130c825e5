"""What a topology asks of a configuration, checked before any process group starts."""

from __future__ import annotations

from math import gcd

from megatron_ngpt.config import Config, check_batch
from megatron_ngpt.config.deepspeed import needs_deepspeed
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.parallel.shard import local_model
from megatron_ngpt.parallel.stages import stage_map


def check_topology(config: Config, degrees: Degrees) -> None:
    """Refuse what cannot run on these degrees.

    Raises:
        ValueError: naming the setting, its value and the way out.
    """
    check_batch(config, degrees.dp)
    _check_muon(config, degrees)
    check_heads(config, degrees)
    stages = stage_map(config)
    if degrees.pp > 1:
        _check_micro_batches(config, degrees, len(stages.parts))


def check_heads(config: Config, degrees: Degrees) -> None:
    """Heads are dealt out to tensor-parallel ranks and then to Ulysses ranks.

    Raises:
        ValueError: a head would have to be split.
    """
    heads, n = local_model(config.model, degrees.tp).kv_heads, degrees.ulysses
    if heads % n:
        raise ValueError(
            f"parallel.ulysses = {n} (0 means parallel.cp) does not divide the {heads} key heads "
            f"of a rank (model.kv_heads / parallel.tp): set it to {gcd(heads, degrees.cp)}, and "
            "the rest of parallel.cp passes keys and values round a ring"
        )


def _check_muon(config: Config, degrees: Degrees) -> None:
    """Matrices stay whole on one replica, and with several where ZeRO shards nothing."""
    optim = config.optim
    if optim.is_muon and optim.zero_stage and needs_deepspeed(config, degrees.replicas):
        raise ValueError(
            f"optim.optimizer = {optim.optimizer} with optim.zero_stage = {optim.zero_stage} on "
            f"{degrees.replicas} replicas: it works on whole matrices, which ZeRO would cut: set "
            "optim.zero_stage to 0 or optim.optimizer to adamw"
        )


def _check_micro_batches(config: Config, degrees: Degrees, stages: int) -> None:
    """The schedules' own conditions on the number of micro-batches."""
    count = config.train.global_batch // (config.train.micro_batch * degrees.dp)
    schedule = config.parallel.schedule
    at_least = {"1f1b": stages, "zbv": stages}.get(schedule, degrees.pp)
    rounds = max(1, count // degrees.pp)
    if count < at_least or (schedule in ("interleaved", "zero_bubble") and count % rounds):
        raise ValueError(
            f"parallel.schedule = {schedule} with {stages} stages on parallel.pp = {degrees.pp} "
            f"ranks cannot run {count} micro-batches (train.global_batch / (train.micro_batch * "
            f"dp)): it needs at least {at_least}, best a multiple of {degrees.pp}: raise "
            "train.global_batch or lower train.micro_batch"
        )
