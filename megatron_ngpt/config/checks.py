"""Combinations that cannot work, refused before any process group starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from megatron_ngpt.config.data_checks import data_problems
from megatron_ngpt.config.deepspeed import deepspeed_config
from megatron_ngpt.config.duration import seconds_of
from megatron_ngpt.config.model_checks import model_problems
from megatron_ngpt.config.phases import boundary_problems, length_problems, phases
from megatron_ngpt.config.tree import Config


def check(config: Config) -> None:
    """Raise one ValueError that lists every impossible setting, each with the way out."""
    # the second kind reckons with values of which the first kind makes sure
    problems = list(_positive(config)) or [
        *model_problems(config.model), *_optim(config), *_muon(config), *_engine(config),
        *_parallel(config),
        *_run(config), *data_problems(config.data),
    ]  # fmt: skip
    _refuse(problems or list(_later(config)))


def check_plan(config: Config, step: int = 0, token: int = 0) -> None:
    """Raise one ValueError that lists what is impossible from where a run stands.

    Apart from :func:`check`, because a saved configuration is also read where that is not known.
    """
    _refuse([*boundary_problems(config, step, token), *_later(config, step, token)])


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("impossible configuration:\n" + "\n".join(f"  - {p}" for p in problems))


def _later(config: Config, step: int = 0, token: int = 0) -> Iterator[str]:
    """What is impossible once the length of sequences changes."""
    yield from length_problems(config)
    for phase in phases(config, step, token)[1:]:
        for problem in (*_parallel(phase.config), *_run(phase.config)):
            yield f"from {phase.setting} on, {problem}"


def check_batch(config: Config, dp: int) -> None:
    """Raise ValueError unless dp ranks can start: the batch divides, the overrides can be merged.

    A saved configuration is also read where none of this matters (generation), so it is apart from
    :func:`check`.
    """
    unit = config.train.micro_batch * dp
    if config.train.elastic and config.train.global_batch % dp:
        fits = max(n for n in range(1, dp) if config.train.global_batch % n == 0)
        raise ValueError(
            f"train.global_batch = {config.train.global_batch} cannot be shared by dp = {dp} "
            f"replicas, whatever train.micro_batch is: dp = {fits} could; start fewer processes "
            "or change train.global_batch"
        )
    if config.train.global_batch % unit:
        raise ValueError(
            f"train.global_batch = {config.train.global_batch} is not a multiple of "
            f"train.micro_batch * dp = {config.train.micro_batch} * {dp} = {unit}: "
            "change one of them or the number of processes"
        )
    deepspeed_config(config, dp)


def fit_micro_batch(config: Config, dp: int) -> Config:
    """The same with the micro-batch that train.elastic allows for dp ranks, where there is one."""
    share, rest = divmod(config.train.global_batch, dp)
    if not config.train.elastic or rest:
        return config
    fits = max(n for n in range(1, config.train.micro_batch + 1) if share % n == 0)
    return replace(config, train=replace(config.train, micro_batch=fits))


_AT_LEAST: dict[str, float] = {
    **{f"model.{name}": 1 for name in ("width", "layers", "heads", "kv_heads", "ffn_width")},
    **{"model.head_dim": 2, "model.vocab_size": 2, "model.rope_theta": 1, "model.rope_factor": 1},
    **{"model.hyperspheres": 1, "model.sphere_slack": 0, "model.maps": 1, "model.map_dim": 0},
    **{f"model.{name}": 0 for name in ("init_std", "norm_eps", "head_norm_eps", "mlp_eps")},
    **{f"parallel.{name}": 1 for name in ("tp", "pp", "cp", "ulysses")},
    **{f"optim.{name}": 0 for name in ("lr", "min_lr", "warmup_steps", "decay_steps", "eps")},
    **{f"optim.{name}": 0 for name in ("weight_decay", "grad_clip", "adam_lr", "momentum")},
    **{f"optim.{name}": 0 for name in ("gate", "angle_cap", "reference_steps")},
    **{f"model.reference_{name}": 0 for name in ("width", "layers")},
    **{"data.seq_len": 1, "data.shuffle_unit": 0, "data.prefetch": 0},
    **{f"train.{name}": 1 for name in ("steps", "global_batch", "micro_batch")},
    **{f"train.{name}": 0 for name in ("stop_at", "seed", "check_every", "hang_timeout")},
    **{f"train.{name}": 0 for name in ("mlp_tile", "loss_chunk", "fault_limit")},
    **{"train.fault_window": 1, "train.spike_threshold": 0, "train.spike_window": 8},
    **{"checkpoint.every": 0, "checkpoint.keep": 0},
    **{"eval.every": 0, "eval.steps": 1, "logging.every": 1, "logging.owner_lease": 1},
    **{"logging.vitals_every": 0, "logging.spectra_every": 0},
}


def _positive(config: Config) -> Iterator[str]:
    yield from _not_finite(config.to_dict())
    for name, bound in _AT_LEAST.items():
        value = attrgetter(name)(config)
        if not value >= bound:
            yield f"{name} = {value}: must be at least {bound:g}"


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Numbers that are none; YAML can hold ``.inf`` and ``.nan``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{name}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{name} = {value}: must be a finite number"


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
    if not optim.curvature > 0:
        yield f"optim.curvature = {optim.curvature}: must be above 0; 0.1 is the default"
    if optim.gate != 1 and optim.eps == 0:
        yield f"optim.gate = {optim.gate} with optim.eps = 0: the gate measures by eps; set 1e-8"
    if optim.angle_cap and not config.model.is_ngpt:
        yield (
            f"optim.angle_cap = {optim.angle_cap} with model.architecture = gpt: it turns unit "
            "vectors, which gpt has not; set it to 0"
        )
    if optim.angle_cap and not config.model.on_one_sphere:
        yield (
            f"optim.angle_cap = {optim.angle_cap} with model.hyperspheres or model.sphere_slack: "
            "angles are those of vectors of length 1; set one of them to 0 or 1"
        )
    if not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas = {list(optim.betas)}: both must be in [0, 1)"


def _muon(config: Config) -> Iterator[str]:
    optim = config.optim
    if not optim.is_muon:
        if optim.adam_lr:
            yield (
                f"optim.adam_lr = {optim.adam_lr} with optim.optimizer = adamw, which has optim.lr "
                "alone: set it to 0"
            )
        return
    name = f"optim.optimizer = {optim.optimizer}"
    if config.parallel.tp > 1:
        yield (
            f"{name} with parallel.tp = {config.parallel.tp}: it works on whole matrices, of which "
            "a rank would have parts: set parallel.tp to 1 or optim.optimizer to adamw"
        )
    if optim.lr == 0:
        yield f"{name} with optim.lr = 0: the learning rate of AdamW is a multiple of it"
    if not optim.momentum < 1:
        yield f"optim.momentum = {optim.momentum}: must be below 1"
    if optim.gate != 1:
        yield f"{name} with optim.gate = {optim.gate}: the gate is AdamW's: set one of them back"
    if config.model.parametrisation == "nugpt":
        yield (
            f"{name} with model.parametrisation = nugpt, whose learning rates are AdamW's: set one "
            "of them back"
        )
    if optim.optimizer == "muonh" and config.model.is_ngpt:
        yield f"{name} with model.architecture = ngpt, which has its own sphere: set it to muon"


def _engine(config: Config) -> Iterator[str]:
    engine = config.engine
    if engine.attention == "flash" and config.train.dtype == "fp32":
        yield (
            "engine.attention = flash needs train.dtype = bf16, not fp32: change one of them or "
            "set engine.attention to auto"
        )
    if engine.attention == "flash" and engine.device == "cpu":
        yield "engine.attention = flash needs a GPU, not engine.device = cpu: set it to auto"


def _parallel(config: Config) -> Iterator[str]:
    parallel, stage = config.parallel, config.optim.zero_stage
    for name in ("tied_embedding", "value_residual"):
        if parallel.pp > 1 and getattr(config.model, name):
            yield (
                f"model.{name} with parallel.pp = {parallel.pp}: it joins the first layers to the "
                "last, which other ranks would hold; set parallel.pp to 1 or model."
                f"{name} to false"
            )
    if parallel.pp > 1 and stage > 1:
        yield (
            f"optim.zero_stage = {stage} with parallel.pp = {parallel.pp}: a pipeline runs many "
            "backward passes before one reduction, which stages 2 and 3 would do each time anew: "
            "set optim.zero_stage to 0 or 1, or parallel.pp to 1"
        )
    if parallel.pp > 1 and config.train.compile and parallel.schedule in ("zero_bubble", "zbv"):
        yield (
            f"train.compile with parallel.schedule = {parallel.schedule}: a compiled block has one "
            "backward, which a zero-bubble schedule would split: choose 1f1b or interleaved"
        )
    if (parallel.stages_per_rank > 1) == (parallel.schedule == "1f1b"):
        yield (
            f"parallel.stages_per_rank = {parallel.stages_per_rank} with parallel.schedule = "
            f"{parallel.schedule}: 1f1b has 1 stage a rank, the others several"
        )
    if parallel.schedule == "zbv" and parallel.stages_per_rank != 2:
        yield f"parallel.stages_per_rank = {parallel.stages_per_rank}: zbv has 2 stages a rank"
    yield from _sequence(config)


def _sequence(config: Config) -> Iterator[str]:
    """How tp and cp ranks share the tokens of a sequence."""
    parallel, seq_len = config.parallel, config.data.seq_len
    if parallel.cp % parallel.ulysses:
        yield (
            f"parallel.ulysses = {parallel.ulysses} does not divide parallel.cp = {parallel.cp}: "
            "cp / ulysses groups form the ring; change one of them"
        )
        return
    if seq_len % parallel.sequence_unit:
        names = "parallel.tp" if parallel.cp == 1 else "parallel.tp * cp (twice in a ring)"
        yield (
            f"data.seq_len = {seq_len} is not a multiple of {names} = {parallel.sequence_unit}, "
            "whose ranks share its tokens: change one of them"
        )


def _run(config: Config) -> Iterator[str]:
    if config.train.offload and not config.train.recompute:
        yield "train.offload moves what train.recompute keeps: set train.recompute to true, too"
    if config.train.recompute_keep and not config.train.recompute:
        yield (
            f"train.recompute_keep = {list(config.train.recompute_keep)} are ops that "
            "train.recompute spares: set train.recompute to true, too"
        )
    if config.train.recompute_keep and config.train.compile:
        yield (
            f"train.recompute_keep = {list(config.train.recompute_keep)} with train.compile: a "
            "compiled block has no ops to keep: leave one of them out"
        )
    if config.train.stop_at > config.train.steps:
        yield (
            f"train.stop_at = {config.train.stop_at} is above train.steps = "
            f"{config.train.steps}: the run would end first; lower it or set 0"
        )
    for name in ("train.exit_after", "logging.owner_wait"):
        try:
            seconds_of(attrgetter(name)(config))
        except ValueError as err:
            yield f"{name} = {err}"
