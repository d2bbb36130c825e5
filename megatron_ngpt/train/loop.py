"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from torch import Tensor

from megatron_ngpt.config import Config
from megatron_ngpt.data.corpus import Share, Stage
from megatron_ngpt.data.loader import Batch, eval_batches, train_loader
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.checkpoint.folder import Progress
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.train.checks import check
from megatron_ngpt.train.metrics import RunLog


def train(
    config: Config, engine: Engine, stages: Sequence[Stage], valid: Sequence[Share]
) -> Progress:
    """Train from the newest checkpoint, or from the start, to train.steps or train.stop_at.

    Raises:
        FloatingPointError: the loss or the gradient is no longer finite.
        ReplicasDiffer: ranks that must hold the same parameter do not.
        ValueError: a corpus reaches its limit of epochs before the end.
    """
    checkpointer = Checkpointer(config, engine)
    progress = checkpointer.resume()
    last = config.train.stop_at or config.train.steps
    samples = progress.tokens // config.data.seq_len  # seq_len may have changed since
    dp, dp_rank = engine.mesh.degrees.dp, engine.mesh.index("dp")
    loader = train_loader(
        config,
        stages,
        dp=dp,
        dp_rank=dp_rank,
        consumed=samples,
        step=progress.step,
        pin=_pin(engine),
    )
    with loader, RunLog(config, progress.step, enabled=engine.mesh.rank == 0) as log:
        while progress.step < last:
            started = time.perf_counter()
            batch, _ = next(loader)
            lr = learning_rate(config, progress.step)
            result = engine.train_step(*_to_device(batch, engine), lr)
            seconds = time.perf_counter() - started
            step_tokens = config.train.global_batch * config.data.seq_len
            progress = Progress(progress.step + 1, progress.tokens + step_tokens)
            record = {
                "step": progress.step,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "lr": lr,
                "tokens": progress.tokens,
                "tokens_per_second": step_tokens / seconds,
                "step_seconds": seconds,
            }
            if problem := _not_finite(record):
                checkpointer.close()  # every rank is here, and the save under way is still good
                raise FloatingPointError(problem)
            if config.train.check_every and progress.step % config.train.check_every == 0:
                record |= check(engine)
            if valid and _due(progress.step, config.eval.every, last):
                record |= validation(config, engine, valid)
            log.step(record)
            if _due(progress.step, config.checkpoint.every or last, last):
                checkpointer.save(progress)
    checkpointer.close()
    return progress


def validation(config: Config, engine: Engine, valid: Sequence[Share]) -> dict[str, float]:
    """valid_loss, the mean over the corpora by weight; of several also each valid_loss/NAME."""
    losses = {share.name: evaluate(config, engine, share) for share in valid}
    total = sum(share.weight for share in valid)
    mean = sum(losses[share.name] * share.weight for share in valid) / total
    each = {f"valid_loss/{name}": loss for name, loss in losses.items()} if len(valid) > 1 else {}
    return {"valid_loss": mean} | each


def evaluate(config: Config, engine: Engine, share: Share) -> float:
    """Mean loss on a corpus over eval.steps global batches, always the same ones."""
    dp, dp_rank = engine.mesh.degrees.dp, engine.mesh.index("dp")
    batches = eval_batches(config, share, dp=dp, dp_rank=dp_rank, pin=_pin(engine))
    losses = [engine.evaluate(*_to_device(batch, engine)) for batch in batches]
    return sum(losses) / len(losses)


def _due(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _pin(engine: Engine) -> bool:
    return engine.mesh.device.type == "cuda"


def _to_device(batch: Batch, engine: Engine) -> tuple[Tensor, Tensor]:
    device = engine.mesh.device
    tokens = batch.tokens.to(device, non_blocking=True)
    return tokens, batch.targets.to(device, non_blocking=True)


def _not_finite(record: dict[str, float]) -> str:
    """What is no longer a number, or ""."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(record[name]):
            return (
                f"{name} is {record[name]} at step {record['step']}: lower optim.lr or "
                "optim.grad_clip and start again; the run resumes from its newest checkpoint"
            )
    return ""
