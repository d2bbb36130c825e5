"""A checkpoint from another project's weights, written one file's worth at a time."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

from megatron_ngpt.config import Config, save_config
from megatron_ngpt.engine.checkpoint.boxes import Boxes
from megatron_ngpt.engine.checkpoint.index import MASTER
from megatron_ngpt.engine.checkpoint.planner import BoxSavePlanner
from megatron_ngpt.engine.checkpoint.storage import Writer
from megatron_ngpt.interop.sources import Source
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.run.checkpoints import STATE, Progress, begin, checkpoints, publish
from megatron_ngpt.run.durable import write_durably


class _LazyPlanner(BoxSavePlanner):
    """Plans with empty boxes and fetches each one's values when it is written."""

    def __init__(self, fetch: Callable[[str], Tensor]) -> None:
        super().__init__()
        self.fetch = fetch

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The values of one whole tensor."""
        return self.fetch(write_item.index.fqn)


def write_checkpoint(source: Source, config: Config, folder: Path) -> Path:
    """Write ``folder/step_00000000``: the weights as they are, the optimizer's averages at zero.

    Args:
        source: where the weights come from.
        config: saved with them; its model is the source's.
        folder: of checkpoints, with none in it yet; a run's ``checkpoint.dir``.

    Raises:
        FileExistsError: there are checkpoints in the folder already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoints(folder):
        raise FileExistsError(f"{folder} has checkpoints already: choose another folder")
    table = parameter_table(config.model)
    shapes = {name: spec.shape for name, spec in table.items()}
    state = {
        f"{kind}/{name}": Boxes(shape, {(0,) * len(shape): torch.empty(shape, device="meta")})
        for name, shape in shapes.items()
        for kind in (MASTER, *config.optim.averages(table[name].group))
    }

    def fetch(name: str) -> Tensor:
        kind, _, parameter = name.partition("/")
        return source.load(parameter) if kind == MASTER else torch.zeros(shapes[parameter])

    def start() -> Path:
        temporary = begin(folder, step=0)
        save_config(config, temporary / "config.yaml")
        facts = {**asdict(Progress()), "imported_from": source.kind, "saved_at": time.time()}
        write_durably(temporary / STATE, json.dumps(facts, indent=1))
        return temporary

    writer = Writer(0, begin=start, whole=lambda temporary: publish(temporary, keep=0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is meant to be
        dcp.save(state, storage_writer=writer, planner=_LazyPlanner(fetch), no_dist=True)
    return checkpoints(folder)[0]
