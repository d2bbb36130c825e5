"""Megatron's arguments of optimizer, schedule and length of the run."""

from __future__ import annotations

from typing import Any

from megatron_ngpt.interop.megatron.arguments import Arguments
from megatron_ngpt.interop.megatron.found import Found

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "wsd": "wsd"}


def translate_run_length(args: Arguments, found: Found) -> None:
    """Batch, steps, precision and seed."""
    micro = args.count("micro-batch-size", "batch-size", default=1)
    found.set("train.micro_batch", micro, args.name_of("micro-batch-size", "batch-size"))
    _global_batch(args, found, micro)
    _steps(args, found)
    for name in ("rampup-batch-size", "step-batch-size-schedule"):
        if ramp := args.words(name):
            found.warn(
                f"--{name}", f"{' '.join(ramp)} there; here every step has train.global_batch "
                "sequences (data.stages can change it at a count of tokens)",
            )  # fmt: skip
    if args.flag("bf16") or args.flag("fp16"):
        fp16 = "bf16" not in args
        found.set("train.dtype", "bf16", "instead of --fp16" if fp16 else "--bf16")
        if fp16:
            found.warn("--fp16", "bf16 here: there is no fp16 and no loss scaling")
    else:
        found.set("train.dtype", "fp32", "neither --bf16 nor --fp16")
    seed = args.count("seed", default=1234)
    found.set("train.seed", seed, "--seed" if "seed" in args else "Megatron's default")


def _global_batch(args: Arguments, found: Found, micro: int) -> None:
    size = args.count("global-batch-size")
    if size:
        found.set("train.global_batch", size, "--global-batch-size")
        if size % micro:
            raise ValueError(
                f"--global-batch-size = {size} is no multiple of --micro-batch-size = {micro}"
            )
        return
    ranks = 1
    for name in ("nproc-per-node", "nnodes", "num-gpus", "num-nodes"):
        words = args.launcher.get(name, [""])
        ranks *= int(words[0]) if words and words[0].isdecimal() else 1
    for name in (
        "tensor-model-parallel-size",
        "pipeline-model-parallel-size",
        "context-parallel-size",
    ):
        ranks = max(1, ranks // args.count(name, default=1))
    found.set("train.global_batch", micro * ranks, f"--micro-batch-size * {ranks} replicas")
    found.warn(
        "train.global_batch", f"not given; Megatron takes --micro-batch-size times the replicas, "
        f"of which the launcher's options show {ranks}: set it",
    )  # fmt: skip


def _in_steps(args: Arguments, found: Found, stem: str) -> int:
    """Steps of an argument that may be counted in iterations, samples or tokens; 0 if not given."""
    batch = found.settings["train.global_batch"]
    length = args.count("seq-length", "encoder-seq-length", default=1024)
    # all three are asked for, so that none is left over as unknown
    counts = {
        f"{stem}-iters": args.count(f"{stem}-iters"),
        f"{stem}-samples": args.count(f"{stem}-samples") // batch,
        f"{stem}-tokens": args.count(f"{stem}-tokens") // (batch * length),
    }
    given = {name: steps for name, steps in counts.items() if name in args}
    if len(given) > 1:
        least = min(given, key=lambda name: given[name])
        found.note(f"--{stem}", f"given as {', '.join(given)}: --{least} is reached first")
        return given[least]
    return next(iter(given.values()), 0)


def _steps(args: Arguments, found: Found) -> None:
    steps = _in_steps(args, found, "train")
    if not steps:
        found.warn(
            "train.steps", "the arguments do not say how long: our default of 1000 steps holds"
        )
        steps = 1000
    name = next((n for n in ("train-iters", "train-samples", "train-tokens") if n in args), "")
    found.set("train.steps", steps, f"--{name}" if name else "our default")
    stop = args.count("exit-interval")
    if 0 < stop < steps:
        found.set("train.stop_at", stop, "--exit-interval")


def translate_optim(args: Arguments, found: Found) -> None:
    """Optimizer, learning rate and its schedule, and what is sharded."""
    _optimizer(args, found)
    lr = args.number("lr")
    if not lr:
        found.warn("--lr", "not given: our default of 1e-3 holds")
        lr = 1e-3
    found.set("optim.lr", lr, "--lr" if "lr" in args else "our default")
    if found.is_ngpt:
        found.warn(
            "--lr", f"{lr:g} is kept, and was found for another model: nGPT's best one is usually "
            "higher; tools/study.py finds it",
        )  # fmt: skip
    found.set(
        "optim.min_lr",
        args.number("min-lr"),
        "--min-lr" if "min-lr" in args else "Megatron's default",
    )
    _schedule(args, found)
    for ours, default, name in (
        ("eps", 1e-8, "adam-eps"),
        ("grad_clip", 1.0, "clip-grad"),
    ):
        value = args.number(name, default=default)
        found.set(f"optim.{ours}", value, f"--{name}" if name in args else "Megatron's default")
    betas = [args.number("adam-beta1", default=0.9), args.number("adam-beta2", default=0.999)]
    named = "adam-beta1" in args or "adam-beta2" in args
    found.set("optim.betas", betas, "--adam-beta1, --adam-beta2" if named else "Megatron's default")
    _without_for_ngpt(
        found, "weight_decay", args.number("weight-decay", default=0.01), "--weight-decay"
    )
    for name in ("start-weight-decay", "end-weight-decay", "weight-decay-incr-style"):
        if args.words(name) and args.text(name) != "constant":
            found.warn(f"--{name}", "weight decay does not change during a run here")
    for name in ("decoupled-lr", "decoupled-min-lr", "head-lr-mult"):
        if args.words(name):
            found.warn(f"--{name}", "embedding and head have the learning rate of all (optim.lr)")
    _zero(args, found)


def _optimizer(args: Arguments, found: Found) -> None:
    kind = args.text("optimizer", default="adam")
    tp = args.count("tensor-model-parallel-size", default=1)
    muon = "muon" in kind and tp == 1
    found.set(
        "optim.optimizer",
        "muon" if muon else "adamw",
        "--optimizer" if "optimizer" in args else "Megatron's default",
    )
    if "muon" in kind and tp > 1:
        found.warn(
            "--optimizer",
            f"{kind} there; AdamW here, since Muon wants whole matrices on a rank (tp = {tp})",
        )
    elif kind not in ("adam", "adamw", "muon", "dist_muon"):
        found.warn(
            "--optimizer", f"{kind} there; AdamW here (optim.optimizer has adamw, muon and muonh)"
        )
    if muon:
        found.set("optim.momentum", args.number("muon-momentum", default=0.95), "--muon-momentum")


def _without_for_ngpt(found: Found, ours: str, value: Any, name: str) -> None:
    """nGPT wants neither weight decay nor warm-up."""
    if found.is_ngpt and value:
        found.warn(
            name, f"{value:g} there; 0 here: nGPT needs none (arXiv 2410.01131, section 2.6)"
        )
        value = 0
    found.set(f"optim.{ours}", value, f"nGPT: none; {name}" if found.is_ngpt else name)


def _schedule(args: Arguments, found: Found) -> None:
    steps = found.settings["train.steps"]
    style = args.text("lr-decay-style", default="linear")
    ours = _SCHEDULES.get(style.lower(), "cosine")
    found.set(
        "optim.schedule",
        ours,
        "--lr-decay-style" if "lr-decay-style" in args else "Megatron's default",
    )
    if style.lower() not in _SCHEDULES:
        found.warn("--lr-decay-style", f"{style} there; cosine here")
    decay = _in_steps(args, found, "lr-decay") or steps
    warmup = _in_steps(args, found, "lr-warmup") or int(args.number("lr-warmup-fraction") * decay)
    if warmup > steps:
        found.warn("--lr-warmup", f"{warmup} steps, which is longer than the run: {steps} here")
    _without_for_ngpt(found, "warmup_steps", min(warmup, steps), "--lr-warmup")
    if decay != steps and ours in ("cosine", "linear"):
        found.warn(
            "--lr-decay", f"min_lr is reached after {decay} steps there; after the last one, "
            f"{steps}, here",
        )  # fmt: skip
    if args.number("lr-warmup-init"):
        found.warn("--lr-warmup-init", "warm-up begins at 0 here")
    if ours == "wsd":
        _wsd(args, found, steps)


def _wsd(args: Arguments, found: Found, steps: int) -> None:
    style = args.text("lr-wsd-decay-style", default="exponential")
    fall = _in_steps(args, found, "lr-wsd-decay")
    if fall:
        room = steps - found.settings["optim.warmup_steps"]
        found.set("optim.decay_steps", min(fall, room), "--lr-wsd-decay-iters or -samples")
    if style != "linear":
        found.warn("--lr-wsd-decay-style", f"{style} there; linear here")


def _zero(args: Arguments, found: Found) -> None:
    """What is sharded over replicas: no arithmetic changes by it."""
    stage, origin = 0, "no --use-distributed-optimizer"
    for name in ("use-distributed-optimizer", "overlap-param-gather"):
        if args.flag(name):
            stage, origin = 1, "--use-distributed-optimizer"
    strategy = args.text("data-parallel-sharding-strategy", default="optim_grads_params")
    stages = {"no_shard": 0, "optim": 1, "optim_grads": 2}
    for name in ("use-megatron-fsdp", "use-custom-fsdp", "use-torch-fsdp2"):
        if args.flag(name):
            stage, origin = stages.get(strategy, 3), f"--{name}"
    if "zero-stage" in args:
        stage, origin = args.count("zero-stage"), "--zero-stage"
    if not 0 <= stage <= 3:
        raise ValueError(f"--zero-stage = {stage}: there are 0 to 3")
    if found.settings["optim.optimizer"] == "muon" and stage:
        found.note("optim.zero_stage", f"0 instead of {stage}: Muon wants whole matrices")
        stage, origin = 0, "Muon wants whole matrices"
    if stage > 1 and args.count("pipeline-model-parallel-size", default=1) > 1:
        found.note("optim.zero_stage", f"1 instead of {stage}: a pipeline has 0 and 1 here")
        stage, origin = 1, "a pipeline has 0 and 1 here"
    found.set("optim.zero_stage", stage, origin)
