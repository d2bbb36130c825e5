"""Save and resume, over all ranks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megatron_ngpt.config import Config, completed, save_config
from megatron_ngpt.config.yaml_file import parsed
from megatron_ngpt.engine.checkpoint.boxes import Boxes
from megatron_ngpt.engine.checkpoint.index import check_files, read_index
from megatron_ngpt.engine.checkpoint.state import (
    copies,
    engine_boxes,
    rng_boxes,
    set_adam_steps,
    set_rng_state,
)
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import AXES
from megatron_ngpt.run.checkpoints import (
    LATEST,
    STATE,
    Progress,
    begin,
    checkpoints,
    newest_here,
    point_latest,
    publish,
    read_progress,
    set_aside,
    settle,
    step_of,
)
from megatron_ngpt.run.durable import DamagedCheckpoint, write_durably
from megatron_ngpt.run.failed import SaveFailed
from megatron_ngpt.run.faults import goes_on_at, read_faults

if TYPE_CHECKING:
    from torch.distributed.checkpoint import CheckpointException

STRETCHES = ("rope_theta", "rope_scaling", "rope_factor", "rope_original")
"""Settings of the model that may change between a checkpoint and the run that resumes it."""


def newest_progress(folder: Path, run_dir: Path, device: torch.device) -> Progress:
    """Step of the newest checkpoint in a folder, and the token at which a run goes on from there
    that has left some out; as rank 0 sees it, collective."""
    found = newest_here(folder) if dist.get_rank() == 0 else Progress()
    faults = read_faults(run_dir) if dist.get_rank() == 0 else []
    numbers = torch.tensor([found.step, goes_on_at(found, faults)], device=device)
    dist.broadcast(numbers, 0)
    step, tokens = numbers.tolist()
    return Progress(step, tokens)


class Checkpointer:
    """Saves an engine's state and brings it back; collective over all ranks.

    Args:
        config: the run's; its ``checkpoint`` section says where, how many and how.
        engine: whose state it is.
        guard: called before each change of the folder on rank 0; raises when it is no longer
            this run's.
        published: told each step whose checkpoint counts from now on, and the seconds since its
            save began, on rank 0.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        guard: Callable[[], None] = lambda: None,
        published: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self.config, self.engine = config, engine
        self.guard, self.published = guard, published
        self.folder = Path(config.checkpoint_dir)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # its own group: background collectives must not mix with training's
        self.group = dist.new_group(backend="gloo")
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.staged: dict[str, Boxes] | None = None
        if self.rank == 0:
            self.guard()
            self.folder.mkdir(parents=True, exist_ok=True)
            for line in settle(self.folder):
                self._tell(line)
        dist.barrier(self.group)

    def save(self, progress: Progress) -> None:
        """Copy the state, then write it: in the background if so configured.

        Waits for the save before it.

        Raises:
            SaveFailed: that one failed, or this one when it is not in the background.
        """
        self.wait()
        began = time.monotonic()
        state = engine_boxes(self.engine) | rng_boxes(self.rank, self.world_size)
        self.staged = copies(state, self.staged)
        self.pending = self.thread.submit(self._write, self.staged, progress, began)
        if not self.config.checkpoint.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            SaveFailed: it failed.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        """Finish a save under way and end the thread."""
        self.wait()
        self.thread.shutdown()

    def _write(self, state: dict[str, Boxes], progress: Progress, began: float) -> None:
        # 1.5 s of CPU time, after which the first step need not come
        import torch.distributed.checkpoint as dcp

        from megatron_ngpt.engine.checkpoint.planner import BoxSavePlanner
        from megatron_ngpt.engine.checkpoint.storage import Writer

        writer = Writer(
            self.rank,
            begin=lambda: self._begin(progress),
            whole=lambda temporary: self._publish(temporary, progress.step, began),
        )
        try:
            dcp.save(
                state, storage_writer=writer, planner=BoxSavePlanner(), process_group=self.group
            )  # fmt: skip
        except dcp.CheckpointException as err:  # all ranks get it, whichever failed
            raise SaveFailed(
                f"the checkpoint of step {progress.step} could not be written to {self.folder}: "
                f"{_reasons(err)}"
            ) from err

    def _begin(self, progress: Progress) -> Path:
        """Coordinator only: the folder to write into, with what is no tensor already there."""
        self.guard()
        temporary = begin(self.folder, progress.step)
        save_config(self.config, temporary / "config.yaml")
        write_durably(temporary / STATE, json.dumps(self._facts(progress), indent=1))
        return temporary

    def _publish(self, temporary: Path, step: int, began: float) -> None:
        self.guard()
        publish(temporary, self.config.checkpoint.keep)
        self.published(step, time.monotonic() - began)

    def _facts(self, progress: Progress) -> dict:
        degrees = dict(zip(AXES, self.engine.mesh.degrees.shape, strict=True))
        zero_stage = self.config.optim.zero_stage
        topology = {**degrees, "zero_stage": zero_stage, "world_size": self.world_size}
        return {**asdict(progress), "topology": topology, "saved_at": time.time()}

    def resume(self) -> Progress:
        """Load the newest checkpoint that is whole; a fresh Progress when there is none.

        Damaged ones are reported, renamed to ``damaged_step_...`` and passed over.

        Raises:
            ValueError: all are damaged, and checkpoint.start_over is not set.
            ValueError: the checkpoint is of another model or of another version's format.
        """
        names = [[path.name for path in checkpoints(self.folder)] if self.rank == 0 else None]
        dist.broadcast_object_list(names, group=self.group)
        for checkpoint in (self.folder / name for name in names[0] or []):
            damage = self._damage(checkpoint)
            if not damage:
                return self._load(checkpoint)
            if self.rank == 0:
                self._tell(f"damaged checkpoint, moved to {set_aside(checkpoint)}: {damage}")
        if names[0] and not self.config.checkpoint.start_over:
            raise ValueError(
                f"checkpoint.dir = {self.folder}: no whole checkpoint is left there; bring one "
                "back from elsewhere, or set checkpoint.start_over to begin at step 1 again"
            )
        if names[0]:
            self._tell(f"no whole checkpoint in {self.folder}: TRAINING STARTS FROM THE BEGINNING")
        if self.rank == 0:
            (self.folder / LATEST).unlink(missing_ok=True)
        return Progress()

    def give_up(self, step: int) -> str:
        """Set aside the checkpoint of a step, which leads to numbers that are not finite.

        Collective: no rank ends, and makes the launcher end rank 0, before it is done.

        Returns:
            On rank 0 what was done, "" where there is no such checkpoint; "" on others.
        """
        told = self._give_up(step) if self.rank == 0 else ""
        dist.barrier(self.group)
        return told

    def newest(self) -> Progress:
        """Where the newest checkpoint stands, as rank 0 sees it; collective."""
        told: list[Progress] = [newest_here(self.folder) if self.rank == 0 else Progress()]
        dist.broadcast_object_list(told, group=self.group)
        return told[0]

    def _give_up(self, step: int) -> str:
        found = checkpoints(self.folder)
        if not found or step_of(found[0]) != step:
            return ""
        self.guard()
        aside = set_aside(found[0], "not_finite")
        if found[1:]:
            point_latest(found[1])
        before = f"step {step_of(found[1])} is taken next" if found[1:] else "there is none before"
        return f"the checkpoint that leads there was moved to {aside}, {before}"

    def _tell(self, message: str) -> None:
        if self.rank == 0:
            print(message, file=sys.stderr, flush=True)

    def _damage(self, checkpoint: Path) -> str:
        """What is not as it was written; each rank checks its share of the files."""
        problem = ""
        try:
            content = read_index(checkpoint)
            mine = sorted(content["files"])[self.rank :: self.world_size]
            check_files(checkpoint, mine, content, self.config.checkpoint.verify)
            read_progress(checkpoint)
        except (DamagedCheckpoint, OSError) as err:
            problem = str(err)
        problems: list[str | None] = [None] * self.world_size
        dist.all_gather_object(problems, problem, group=self.group)
        return "; ".join(sorted({text for text in problems if text}))

    def _load(self, checkpoint: Path) -> Progress:
        import torch.distributed.checkpoint as dcp

        from megatron_ngpt.engine.checkpoint.planner import BoxLoadPlanner
        from megatron_ngpt.engine.checkpoint.storage import Reader

        _check_model(self.config, checkpoint)
        progress = read_progress(checkpoint)
        state = engine_boxes(self.engine)
        rng = self._saved_rng(checkpoint)
        reader, planner = Reader(checkpoint), BoxLoadPlanner()
        try:
            dcp.load(state | rng, storage_reader=reader, planner=planner, process_group=self.group)
        except dcp.CheckpointException as err:
            raise RuntimeError(f"{checkpoint} could not be loaded: {_reasons(err)}") from err
        set_adam_steps(self.engine, progress.step)
        self.engine.masters.changed()
        for boxes in rng.values():
            for values in boxes.parts.values():
                set_rng_state(values)
        if self.rank == 0:
            point_latest(checkpoint)  # it named another one if that was damaged
        return progress

    def _saved_rng(self, checkpoint: Path) -> dict[str, Boxes]:
        """Room for this rank's random state; none when the ranks were others than now."""
        saved = read_index(checkpoint)["tensors"]
        own = f"rng/{self.rank}"
        now = rng_boxes(self.rank, self.world_size)
        same = f"rng/{self.world_size}" not in saved and f"rng/{self.world_size - 1}" in saved
        if not same or saved[own]["shape"] != list(now[own].shape):
            return {}
        return now


def _reasons(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {why!r}" for rank, (why, _) in error.failures.items())


def _check_model(config: Config, checkpoint: Path) -> None:
    """Raise ValueError unless a checkpoint is of the configured model and optimizer.

    The rotary embedding may differ: that is how a model goes on with longer sequences. A setting
    that the checkpoint's version did not have was at its default there.
    """
    path = checkpoint / "config.yaml"
    saved = parsed(path.read_text(encoding="utf-8"))
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
        raise ValueError(f"{path} has no section model: take another checkpoint")
    theirs = asdict(completed(saved["model"]))
    for name, value in asdict(config.model).items():
        if theirs[name] != value and name not in STRETCHES:
            raise ValueError(
                f"model.{name} = {value}, but {checkpoint} was trained with {theirs[name]}: "
                "set it so, or choose another checkpoint.dir for a new run"
            )
    optim = saved.get("optim")
    before = optim.get("optimizer", "adamw") if isinstance(optim, dict) else "adamw"
    now = config.optim.optimizer
    if before != now:
        raise ValueError(
            f"optim.optimizer = {now}, but {checkpoint} was trained with {before}, which keeps "
            "other averages: set it so, or choose another checkpoint.dir for a new run"
        )
