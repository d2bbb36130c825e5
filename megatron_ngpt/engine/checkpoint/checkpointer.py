"""Save and resume: when a checkpoint counts as whole, which one is taken, which are kept."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from megatron_ngpt.config import Config, load_config, save_config
from megatron_ngpt.engine.checkpoint.index import (
    DamagedCheckpoint,
    check_files,
    read_index,
    sync_folder,
    write_durably,
)
from megatron_ngpt.engine.checkpoint.planner import Boxes, BoxLoadPlanner, BoxSavePlanner
from megatron_ngpt.engine.checkpoint.state import (
    copies,
    engine_boxes,
    rng_boxes,
    set_adam_steps,
    set_rng_state,
)
from megatron_ngpt.engine.checkpoint.storage import Reader, Writer
from megatron_ngpt.engine.engine import Engine

LATEST = "latest"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps done."""

    tokens: int = 0
    """Tokens of the training stream consumed."""


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a folder, newest first."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def read_progress(checkpoint: Path) -> Progress:
    """Step and data position of a checkpoint."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return Progress(**{name: state[name] for name in asdict(Progress())})


class Checkpointer:
    """Saves an engine's state and brings it back; collective over all ranks.

    Args:
        config: the run's; its ``checkpoint`` section says where, how many and how.
        engine: whose state it is.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.folder = Path(config.checkpoint_dir)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # its own group: background collectives must not mix with training's
        self.group = dist.new_group(backend="gloo")
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.staged: dict[str, Boxes] | None = None
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            _clear_temporary(self.folder)
        dist.barrier(self.group)

    def save(self, progress: Progress) -> None:
        """Copy the state, then write it: in the background if so configured.

        Waits for the save before it, and raises that one's error if it failed.
        """
        self.wait()
        state = engine_boxes(self.engine) | rng_boxes(self.rank, self.world_size)
        self.staged = copies(state, self.staged)
        self.pending = self.thread.submit(self._write, self.staged, progress)
        if not self.config.checkpoint.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            Exception: the one that ended the save.
        """
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, state: dict[str, Boxes], progress: Progress) -> None:
        final = self.folder / f"step_{progress.step:08d}"
        temporary = self.folder / f".writing_{final.name}"
        if self.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            save_config(self.config, temporary / "config.yaml")
            write_durably(temporary / "state.json", json.dumps(self._facts(progress), indent=1))
        dist.barrier(self.group)
        writer = Writer(temporary, self.rank, lambda: self._publish(temporary, final))
        dcp.save(
            state, storage_writer=writer, planner=BoxSavePlanner(), process_group=self.group
        )  # fmt: skip

    def _facts(self, progress: Progress) -> dict:
        degrees, zero_stage = self.engine.mesh.degrees, self.config.optim.zero_stage
        topology = {**asdict(degrees), "zero_stage": zero_stage, "world_size": self.world_size}
        return {**asdict(progress), "topology": topology, "saved_at": time.time()}

    def _publish(self, temporary: Path, final: Path) -> None:
        """Coordinator only, all files written: make it a checkpoint, then drop old ones."""
        sync_folder(temporary)
        replaced = temporary.with_name(f"{temporary.name}_replaced")
        if final.exists():  # the step was trained again
            final.rename(replaced)
        temporary.rename(final)
        sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        pointer = self.folder / f".{LATEST}"
        write_durably(pointer, final.name + "\n")
        pointer.rename(self.folder / LATEST)
        keep = self.config.checkpoint.keep
        for old in checkpoints(self.folder)[keep:] if keep else []:
            shutil.rmtree(old)

    def resume(self) -> Progress:
        """Load the newest checkpoint that is whole; a fresh Progress when there is none.

        Damaged ones are reported, renamed to ``damaged_step_...`` and passed over.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        names = [[path.name for path in checkpoints(self.folder)] if self.rank == 0 else None]
        dist.broadcast_object_list(names, group=self.group)
        for name in names[0] or []:
            if self._whole(self.folder / name):
                return self._load(self.folder / name)
        return Progress()

    def _whole(self, checkpoint: Path) -> bool:
        """Whether every file is as written; each rank checks its share of them."""
        problem = ""
        try:
            content = read_index(checkpoint)
            mine = sorted(content["files"])[self.rank :: self.world_size]
            check_files(checkpoint, mine, content, self.config.checkpoint.verify)
            read_progress(checkpoint)
        except (DamagedCheckpoint, OSError, ValueError, KeyError) as err:
            problem = str(err)
        problems: list[str | None] = [None] * self.world_size
        dist.all_gather_object(problems, problem, group=self.group)
        found = [text for text in problems if text]
        if found and self.rank == 0:
            aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)  # or it would count among the newest to keep
            print(f"damaged checkpoint, moved to {aside}: {'; '.join(found)}", file=sys.stderr)
        return not found

    def _load(self, checkpoint: Path) -> Progress:
        self._same_model(checkpoint)
        progress = read_progress(checkpoint)
        state = engine_boxes(self.engine)
        rng = self._saved_rng(checkpoint)
        dcp.load(
            state | rng,
            storage_reader=Reader(checkpoint),
            planner=BoxLoadPlanner(),
            process_group=self.group,
        )
        set_adam_steps(self.engine, progress.step)
        self.engine.masters.changed()
        for boxes in rng.values():
            for values in boxes.parts.values():
                set_rng_state(values)
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

    def _same_model(self, checkpoint: Path) -> None:
        theirs = load_config(checkpoint / "config.yaml").to_dict()["model"]
        ours = self.config.to_dict()["model"]
        for name, value in ours.items():
            if theirs[name] != value:
                raise ValueError(
                    f"model.{name} = {value}, but {checkpoint} was trained with {theirs[name]}: "
                    "set it so, or choose another checkpoint.dir for a new run"
                )

    def close(self) -> None:
        """Finish a save under way and end the thread."""
        self.wait()
        self.thread.shutdown()


def load_weights(checkpoint: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Whole fp32 parameters of a checkpoint in this process alone, for generation and export."""
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    state = {
        f"master/{name}": Boxes(tuple(values.shape), {(0,) * values.dim(): values})
        for name, values in weights.items()
    }
    reader = Reader(checkpoint)
    planner = BoxLoadPlanner()
    planner.set_up_planner(state, reader.read_metadata())
    assert planner.metadata is not None
    reader.set_up_storage_reader(planner.metadata, is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner)
    return weights


def _clear_temporary(folder: Path) -> None:
    """Remove what an interrupted save left."""
    for left in folder.glob(".writing_step_*"):
        shutil.rmtree(left)
