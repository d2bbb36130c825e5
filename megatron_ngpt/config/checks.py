"""Combinations that cannot work, refused before any process group starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from megatron_ngpt.config.data_checks import data_problems
from megatron_ngpt.config.deepspeed import deepspeed_config
from megatron_ngpt.config.duration import seconds_of
from megatron_ngpt.config.tree import Config


def check(config: Config) -> None:
    """Raise one ValueError that lists every impossible setting, each with the way out."""
    # the second kind reckons with values of which the first kind makes sure
    problems = list(_positive(config)) or [
        *_model(config), *_rope(config), *_optim(config), *_engine(config), *_parallel(config),
        *_run(config), *data_problems(config.data),
    ]  # fmt: skip
    if problems:
        raise ValueError("impossible configuration:\n" + "\n".join(f"  - {p}" for p in problems))


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
    **{f"model.{name}": 0 for name in ("init_std", "norm_eps", "mlp_eps")},
    **{f"parallel.{name}": 1 for name in ("tp", "pp", "cp", "ulysses")},
    **{f"optim.{name}": 0 for name in ("lr", "min_lr", "warmup_steps", "decay_steps", "eps")},
    **{f"optim.{name}": 0 for name in ("weight_decay", "grad_clip")},
    **{"data.seq_len": 1, "data.shuffle_unit": 0, "data.prefetch": 0},
    **{f"train.{name}": 1 for name in ("steps", "global_batch", "micro_batch")},
    **{f"train.{name}": 0 for name in ("stop_at", "seed", "check_every", "hang_timeout")},
    **{f"train.{name}": 0 for name in ("mlp_tile", "loss_chunk")},
    **{"checkpoint.every": 0, "checkpoint.keep": 0},
    **{"eval.every": 0, "eval.steps": 1, "logging.every": 1},
}


def _positive(config: Config) -> Iterator[str]:
    for name, bound in _AT_LEAST.items():
        value = attrgetter(name)(config)
        if not value >= bound:
            yield f"{name} = {value}: must be at least {bound:g}"


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if model.width % model.heads and model.head_dim == model.width // model.heads:
        yield (
            f"model.width = {model.width} is not a multiple of model.heads = {model.heads}: "
            "change one or set model.head_dim"
        )
    if model.head_dim % 2:
        yield f"model.head_dim = {model.head_dim}: rotary embedding needs an even number"
    elif not 0 < model.rotary_fraction <= 1 or model.rotary_dim % 2 or not model.rotary_dim:
        yield (
            f"model.rotary_fraction = {model.rotary_fraction} turns {model.rotary_dim} of "
            f"model.head_dim = {model.head_dim} dimensions: choose a share up to 1 that is a "
            "positive even number of them"
        )
    if model.heads % model.kv_heads:
        yield (
            f"model.kv_heads = {model.kv_heads} does not divide model.heads = {model.heads}: "
            "every key head serves the same number of query heads"
        )


def _rope(config: Config) -> Iterator[str]:
    model = config.model
    if model.rope_scaling == "yarn" and model.rope_original < 1:
        yield (
            f"model.rope_original = {model.rope_original}: yarn asks how long the sequences were "
            "that the model was trained with: set it to their data.seq_len"
        )
    if (model.rope_scaling == "none") != (model.rope_factor == 1):
        yield (
            f"model.rope_factor = {model.rope_factor} with model.rope_scaling = "
            f"{model.rope_scaling}: a factor and a way to scale go together; set both"
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
    if config.train.stop_at > config.train.steps:
        yield (
            f"train.stop_at = {config.train.stop_at} is above train.steps = "
            f"{config.train.steps}: the run would end first; lower it or set 0"
        )
    try:
        seconds_of(config.train.exit_after)
    except ValueError as err:
        yield f"train.exit_after = {err}"
