"""Combinations that cannot work, refused before any process group starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_ngpt.config.tree import Config


def check(config: Config) -> None:
    """Raise one ValueError that lists every impossible setting, each with the way out."""
    problems = [*_positive(config), *_model(config), *_optim(config), *_run(config)]
    if problems:
        raise ValueError("impossible configuration:\n" + "\n".join(f"  - {p}" for p in problems))


def check_batch(config: Config, dp: int) -> None:
    """Raise ValueError unless the global batch divides into dp ranks and micro-batches."""
    unit = config.train.micro_batch * dp
    if config.train.global_batch % unit:
        raise ValueError(
            f"train.global_batch = {config.train.global_batch} is not a multiple of "
            f"train.micro_batch * dp = {config.train.micro_batch} * {dp} = {unit}: "
            "change one of them or the number of processes"
        )


_AT_LEAST: dict[str, dict[str, float]] = {
    "model": dict(width=1, layers=1, heads=1, kv_heads=1, head_dim=2, ffn_width=1, vocab_size=2),
    "parallel": dict(tp=1, pp=1, cp=1),
    "optim": dict(lr=0, min_lr=0, warmup_steps=0, decay_steps=0, weight_decay=0, grad_clip=0),
    "data": dict(seq_len=1, prefetch=0),
    "train": dict(steps=1, global_batch=1, micro_batch=1, stop_at=0, seed=0),
    "checkpoint": dict(every=0, keep=0),
    "eval": dict(every=0, steps=1),
    "logging": dict(every=1),
}


def _positive(config: Config) -> Iterator[str]:
    for section, bounds in _AT_LEAST.items():
        values: Any = getattr(config, section)
        for name, bound in bounds.items():
            value = getattr(values, name)
            if not value >= bound:
                yield f"{section}.{name} = {value}: must be at least {bound:g}"


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if model.width % model.heads and model.head_dim == model.width // model.heads:
        yield (
            f"model.width = {model.width} is not a multiple of model.heads = {model.heads}: "
            "change one or set model.head_dim"
        )
    if model.head_dim % 2:
        yield f"model.head_dim = {model.head_dim}: rotary embedding needs an even number"
    if model.heads % model.kv_heads:
        yield (
            f"model.kv_heads = {model.kv_heads} does not divide model.heads = {model.heads}: "
            "every key head serves the same number of query heads"
        )


def _optim(config: Config) -> Iterator[str]:
    optim, steps = config.optim, config.train.steps
    if optim.min_lr > optim.lr:
        yield f"optim.min_lr = {optim.min_lr} is above optim.lr = {optim.lr}: lower it"
    if optim.warmup_steps > steps:
        yield (
            f"optim.warmup_steps = {optim.warmup_steps} is above train.steps = {steps}: "
            "shorten the warm-up or train longer"
        )
    if optim.schedule == "wsd" and optim.warmup_steps + optim.decay_steps > steps:
        yield (
            f"optim.warmup_steps + optim.decay_steps = {optim.warmup_steps + optim.decay_steps} "
            f"is above train.steps = {steps}: shorten one of them"
        )
    if not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas = {list(optim.betas)}: both must be in [0, 1)"


def _run(config: Config) -> Iterator[str]:
    for axis in ("tp", "pp", "cp"):
        degree = getattr(config.parallel, axis)
        if degree > 1:
            yield (
                f"parallel.{axis} = {degree}: this version trains with data parallelism (dp) and "
                f"ZeRO; set parallel.{axis} to 1"
            )
    if config.train.stop_at > config.train.steps:
        yield (
            f"train.stop_at = {config.train.stop_at} is above train.steps = "
            f"{config.train.steps}: the run would end first; lower it or set 0"
        )
    if not config.data.valid and not 0 <= config.data.valid_fraction < 1:
        yield f"data.valid_fraction = {config.data.valid_fraction}: must be in [0, 1)"
