"""What a run does about a step that cannot be trusted: all ranks agree, rank 0 writes it down.

Costs one all-reduce of 8 bytes a step. What is gathered of a fault, only where there is one.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_ngpt.config import Config
from megatron_ngpt.console import say
from megatron_ngpt.engine.engine import Engine, StepResult
from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.faults import (
    FILE,
    Action,
    Fault,
    Ranges,
    Spikes,
    goes_on_at,
    left_out,
    number_of,
    read_faults,
    recent,
    record,
)
from megatron_ngpt.train.flips import Flips, anywhere
from megatron_ngpt.train.watch import Watch

_ELSEWHERE = "found by another rank"
NAMED = 8
"""Most micro-batches that a fault names where all losses are finite."""


class Faults:
    """Judges every step of a run and keeps account of those that were refused.

    Args:
        config: of the phase.
        engine: that does the steps.
        watch: keeps the faults of this process, and knows who owns the run.
        progress: where the run stands.
    """

    def __init__(self, config: Config, engine: Engine, watch: Watch, progress: Progress) -> None:
        self.config, self.engine, self.watch = config, engine, watch
        self.run_dir, self.train = Path(config.logging.dir), config.train
        if watch.faults is None:
            watch.faults = _known(self.run_dir)
        self.all = watch.faults
        self.flips = Flips(engine, watch, self._account)
        self.spikes = Spikes(self.train.spike_threshold, self.train.spike_window, progress.losses)

    def left_out(self, progress: Progress) -> Ranges:
        """Tokens that no step gets, those of faults after the checkpoint included."""
        return left_out(progress, self.all)

    def resumed(self, progress: Progress) -> Progress:
        """Where a run goes on that stands at a checkpoint."""
        return replace(
            progress, tokens=goes_on_at(progress, self.all), left_out=self.left_out(progress)
        )

    def judge(self, loss: float, grad_norm: float) -> str:
        """What is wrong with a step; collective: wrong for one rank is wrong for all.

        Raises:
            BitsFlipped: on every rank, when the step before has found a flipped bit on any.
        """
        mine = self.spikes.problem(loss)
        if not mine and not math.isfinite(grad_norm):
            mine = f"grad_norm is {grad_norm}"
        bad, flipped = anywhere(self.engine, bool(mine), self.flips.found)
        if flipped:
            raise self.flips.told(loss, grad_norm)
        return (mine or _ELSEWHERE) if bad else ""

    def done(self, progress: Progress, loss: float) -> Progress:
        """A step was done with this loss: what of it the next checkpoint has to know."""
        self.spikes.add(loss)
        if _stage_begins(self.config, progress.tokens):
            self.spikes.losses.clear()
        return replace(progress, losses=tuple(self.spikes.losses))

    def found(self, result: StepResult, step: int, samples: np.ndarray) -> Fault:
        """A step was refused: who saw what, and what shall be done; collective.

        Args:
            result: of the step.
            step: its number.
            samples: numbers of its batch in the stream.
        """
        self.flips.look(result.loss, result.grad_norm)  # which may be why
        theirs: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(theirs, self._seen_here(result.problem, samples))
        micro = [found for rank in theirs for found in rank["micro_batches"]]
        bad = [found for found in micro if found["loss"] is None]
        worst = sorted(micro, key=lambda found: -(found["loss"] or 0.0))[:NAMED]
        told = [rank["problem"] for rank in theirs if rank["problem"] != _ELSEWHERE]
        return Fault(
            step=step,
            problem=told[0],
            action=self._action(step),
            samples=(int(samples[0]), int(samples[-1]) + 1),
            ranks=tuple(number for number, rank in enumerate(theirs) if rank["bad"]),
            micro_batches=tuple(bad or worst),
            parameters=tuple(sorted({name for rank in theirs for name in rank["parameters"]})),
            loss=number_of(result.loss),
            grad_norm=number_of(result.grad_norm),
            attempt=self.watch.attempt.number if self.watch.attempt else 0,
            time=time.time(),
        )

    def skip(self, fault: Fault, progress: Progress) -> Progress:
        """Leave a fault's batch out; where the run stands then, with no step more done."""
        first, end = (number * self.config.data.seq_len for number in fault.samples)
        self._account(replace(fault, left_out=((first, end),)))
        self._tell(fault, "its batch is left out")
        return replace(progress, tokens=end, left_out=self.left_out(progress))

    def roll_back(self, fault: Fault, to: Progress) -> Progress:
        """Leave out all data from a checkpoint to a fault; where the run stands then."""
        end = fault.samples[1] * self.config.data.seq_len
        fault = replace(fault, back_to=to.step, left_out=((to.tokens, end),))
        self._account(fault)
        self._tell(
            fault,
            f"back to step {to.step}, leaving out the {end - to.tokens:,} tokens from there on",
        )
        if self.watch.attempt:
            undone = sum(f.step - 1 - f.back_to for f in self.all if f.action == "rollback")
            self.watch.attempt.note(undone=undone)
        return replace(to, tokens=goes_on_at(to, self.all))

    def stop(self, fault: Fault, aside: str) -> FloatingPointError:
        """The error that ends the run."""
        self._account(fault)
        tried = ""
        if self.train.on_fault != "stop":
            tried = (
                f"; train.fault_limit = {self.train.fault_limit} faults in "
                f"{self.train.fault_window} steps are used up"
            )
        return FloatingPointError(
            f"{fault.problem} at step {fault.step}: lower optim.lr or optim.grad_clip and start "
            f"again; the run resumes from its newest checkpoint{tried}{'; ' * bool(aside)}{aside}"
        )

    def counted(self) -> dict[str, float]:
        """For the metrics, once there was a fault."""
        return {"faults": float(len(self.all))} if self.all else {}

    def _action(self, step: int) -> Action:
        used = recent(self.all, step, self.train.fault_window)
        return "stop" if used >= self.train.fault_limit else self.train.on_fault

    def _seen_here(self, problem: str, samples: np.ndarray) -> dict[str, Any]:
        """What this rank knows of a refused step, beyond what all do."""
        mesh, size = self.engine.mesh, self.train.micro_batch
        losses = [number_of(float(loss)) for loss in self.engine.losses]
        mine = samples.reshape(mesh.degrees.dp, -1, size)[mesh.index("dp")].tolist()
        micro = [
            {"rank": mesh.rank, "samples": [rows[0], rows[-1] + 1], "loss": loss}
            for rows, loss in zip(mine, losses, strict=False)  # none but on the last stage
        ]
        return {
            "problem": problem,
            "micro_batches": micro if mesh.index("tp") == 0 else [],  # the others' are the same
            "parameters": self.engine.unsound,
            "bad": None in losses or bool(self.engine.unsound),
        }

    def _account(self, fault: Fault) -> None:
        """Keep a fault, on disk before anything follows from it."""
        self.all.append(fault)
        if self.engine.mesh.rank:
            return
        self.watch.guard()
        try:
            record(self.run_dir, fault)
        except OSError as err:
            say(f"{self.run_dir / FILE}: {err}; the run goes on", sys.stderr)
        if self.watch.attempt:
            self.watch.attempt.note(faults=len(self.all))

    def _tell(self, fault: Fault, done: str) -> None:
        if self.engine.mesh.rank == 0:
            used = recent(self.all, fault.step, self.train.fault_window)
            say(
                f"step {fault.step}: {fault.problem}; {done} (fault {used} of "
                f"{self.train.fault_limit} in {self.train.fault_window} steps; {FILE} tells more)",
                sys.stderr,
            )


def _stage_begins(config: Config, tokens: int) -> bool:
    """Whether the batch that follows so many tokens is the first with data of another stage."""
    unit = config.data.shuffle_unit or config.data.seq_len
    batch = range(tokens, tokens + config.train.global_batch * config.data.seq_len)
    return any(-(-stage.tokens // unit) * unit in batch for stage in config.data.stages)


def _known(run_dir: Path) -> list[Fault]:
    """What rank 0 reads of the run so far; collective."""
    told: list[Any] = [read_faults(run_dir) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(told)
    found: list[Fault] = told[0]
    return found
