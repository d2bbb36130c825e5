"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from megatron_ngpt.config import Config, Phase, phases, token_at
from megatron_ngpt.data.corpus import Share, Stage
from megatron_ngpt.data.loader import Batch, Loader, eval_batches, train_loader
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.engine import Engine, StepResult
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.engine.vitals import Vitals
from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.durable import DamagedCheckpoint
from megatron_ngpt.run.faults import Fault
from megatron_ngpt.run.metrics import RunLog
from megatron_ngpt.train.checks import check
from megatron_ngpt.train.faults import Faults
from megatron_ngpt.train.ranks import Ranks
from megatron_ngpt.train.watch import Interrupted, Watch


def train(
    config: Config,
    engine: Engine,
    stages: Sequence[Stage],
    valid: Sequence[Share],
    watch: Watch | None = None,
) -> Progress:
    """Train from the newest checkpoint, or from the start, to train.steps or train.stop_at.

    Ends earlier, saved, when ``watch`` says so, and at the end of the phase in which the run
    stands. The engine has that phase's configuration; the run's own goes into its files. Returns
    also where to go on with a new engine, after a rollback.

    Raises:
        BitsFlipped: memory has changed weights between two steps (train.check_bits).
        DamagedCheckpoint: the newest whole checkpoint is of another phase than the engine.
        FloatingPointError: of a loss or a gradient that is no longer finite, or a spike, when
            train.on_fault stops the run or its limit is reached.
        ReplicasDiffer: ranks that must hold the same parameter do not.
        ValueError: a corpus reaches its limit of epochs before the end.
    """
    watch, now = watch or Watch(), engine.config
    checkpointer = Checkpointer(config, engine, watch.guard, watch.saved)
    progress = checkpointer.resume()
    faults = Faults(now, engine, watch, progress)
    progress = faults.resumed(progress)
    plan = phases(config, progress.step, progress.tokens)
    if plan[0].config != now:
        raise DamagedCheckpoint(
            f"the newest checkpoints were damaged and the run falls back to step {progress.step}, "
            f"when sequences were {plan[0].config.data.seq_len} tokens long: start it again"
        )
    watch.resumed(progress.step)
    goal = config.train.stop_at or config.train.steps
    saved, last = progress.step, _last(config, now, goal, progress)
    device, record = engine.mesh.device, dict(progress.record)
    loader, telling = _loader(plan, engine, stages, progress), config.logging
    ranks = Ranks(engine, telling.vitals_every)
    vitals = Vitals(engine, telling.vitals_every, telling.spectra_every, last)
    log = RunLog(
        config,
        progress.step,
        work=partial(token_at, plan),
        enabled=engine.mesh.rank == 0,
        owed=bool(record),
        ends_at=watch.ends_at,
        guard=watch.guard,
    )
    if progress.step > goal:
        watch.past_the_end(progress.step, goal)
    with loader, log:
        while record or (progress.step < last and not watch.ends(progress.step, "step", device)):
            if not record:
                vitals.expect(progress.step + 1)
                samples = loader.numbers(progress.tokens // now.data.seq_len)
                after, record, result = _step(now, engine, loader, progress, faults, ranks)
                if result.problem:
                    fault = faults.found(result, after.step, samples)
                    if fault.action == "skip":
                        progress, record = faults.skip(fault, progress), {}
                        last = _last(config, now, goal, progress)
                        continue
                    checkpointer.close()  # every rank is here, and the save under way is whole
                    return _fall_back(faults, fault, checkpointer)
                if after.tokens != progress.tokens + plan[0].step_tokens:
                    last = _last(config, now, goal, after)
                progress = faults.done(after, result.loss)
                watch.stepped()
                shown = vitals.taken(progress.step, record["grad_norm"])
                times = ranks.taken(record["step_seconds"], record.pop("data_seconds"))
                log.vitals(progress.step, shown | times)
                if config.train.check_every and progress.step % config.train.check_every == 0:
                    record |= check(engine)
            if valid and _due(progress.step, config.eval.every, last):
                try:
                    record |= validation(now, engine, valid, watch)
                except Interrupted:
                    progress = replace(progress, record=record)
                    break
            log.step(record)
            record, progress = {}, replace(progress, record={})
            if _due(progress.step, config.checkpoint.every or last, last) and progress.step > saved:
                watch.beat(progress.step, "checkpoint")
                faults.flips.look()
                checkpointer.save(progress)
                saved = progress.step
    watch.beat(progress.step, "last checkpoint")
    if progress.step > saved:
        faults.flips.look()
        checkpointer.save(progress)
    checkpointer.close()
    if last == goal or watch.reason:
        watch.ended(progress, goal)
    return progress


def _loader(
    plan: Sequence[Phase], engine: Engine, stages: Sequence[Stage], progress: Progress
) -> Loader:
    config = plan[0].config
    samples, rest = divmod(progress.tokens, config.data.seq_len)  # it may have changed since
    if rest and config.data.shuffle_unit:
        raise ValueError(
            f"data.seq_len = {config.data.seq_len}: the run stands at token {progress.tokens}, no "
            "multiple of it, so some would be read twice: change it after a step where it is one"
        )
    dp, dp_rank = engine.mesh.degrees.dp, engine.mesh.index("dp")
    return train_loader(
        config,
        stages,
        dp=dp,
        dp_rank=dp_rank,
        consumed=samples,
        plan=plan,
        pin=_pin(engine),
        left_out=progress.left_out,
    )


def _last(config: Config, now: Config, goal: int, progress: Progress) -> int:
    """The step with which this engine's part ends; batches left out bring it nearer."""
    phase = phases(config, progress.step, progress.tokens)[0]
    return min(goal, phase.end) if phase.config == now else progress.step


def _fall_back(faults: Faults, fault: Fault, checkpointer: Checkpointer) -> Progress:
    """Where to go on after a fault.

    Raises:
        FloatingPointError: nowhere.
    """
    finite = fault.loss is not None and fault.grad_norm is not None
    aside = "" if finite else checkpointer.give_up(fault.step - 1)
    if fault.action == "stop":
        raise faults.stop(fault, aside)
    return faults.roll_back(fault, checkpointer.newest())


def _step(
    config: Config,
    engine: Engine,
    loader: Loader,
    progress: Progress,
    faults: Faults,
    ranks: Ranks,
) -> tuple[Progress, dict[str, float], StepResult]:
    """One step: how far the run is after it, and its metrics."""
    started = time.perf_counter()
    batch, consumed = next(loader)
    data_seconds = time.perf_counter() - started
    lr = learning_rate(config, progress.step)
    with ranks.around(progress.step + 1):
        result = engine.train_step(*_to_device(batch, engine), lr, faults.judge)
    seconds = time.perf_counter() - started
    step_tokens = config.train.global_batch * config.data.seq_len
    progress = replace(progress, step=progress.step + 1, tokens=consumed * config.data.seq_len)
    # what was read says where the run stands; with documents apart, less than that was predicted
    targets = {"targets": result.targets} if config.data.document_mask else {}
    record = {
        "step": progress.step,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": lr,
        "tokens": progress.tokens,
        "tokens_per_second": step_tokens / seconds,
        "step_seconds": seconds,
        "data_seconds": data_seconds,
    }
    return progress, record | targets | faults.counted(), result


def validation(
    config: Config, engine: Engine, valid: Sequence[Share], watch: Watch
) -> dict[str, float]:
    """valid_loss, the mean over the corpora by weight; of several also each valid_loss/NAME.

    Raises:
        Interrupted: on every rank, when ``watch`` ends the run before the last batch.
    """
    losses = {share.name: evaluate(config, engine, share, watch) for share in valid}
    total = sum(share.weight for share in valid)
    mean = sum(losses[share.name] * share.weight for share in valid) / total
    each = {f"valid_loss/{name}": loss for name, loss in losses.items()} if len(valid) > 1 else {}
    return {"valid_loss": mean} | each


def evaluate(config: Config, engine: Engine, share: Share, watch: Watch) -> float:
    """Mean loss of all targets in eval.steps global batches of a corpus, always the same ones."""
    dp, dp_rank = engine.mesh.degrees.dp, engine.mesh.index("dp")
    total, targets = 0.0, 0
    for batch in eval_batches(config, share, dp=dp, dp_rank=dp_rank, pin=_pin(engine)):
        if watch.ends(watch.step, f"evaluation on {share.name}", engine.mesh.device):
            raise Interrupted
        loss = engine.evaluate(*_to_device(batch, engine))
        # with documents apart, batches differ in how many targets count
        total, targets = total + loss * int(engine.targets), targets + int(engine.targets)
    return total / max(1, targets)


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _pin(engine: Engine) -> bool:
    return engine.mesh.device.type == "cuda"


def _to_device(batch: Batch, engine: Engine) -> tuple[Tensor, Tensor]:
    device = engine.mesh.device
    tokens = batch.tokens.to(device, non_blocking=True)
    return tokens, batch.targets.to(device, non_blocking=True)
