"""The model's weights from a checkpoint of any topology, in one process."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_ngpt.engine.checkpoint.index import check_files, read_index
from megatron_ngpt.engine.checkpoint.planner import Boxes, BoxLoadPlanner
from megatron_ngpt.engine.checkpoint.storage import Reader


def load_weights(checkpoint: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Whole fp32 parameters of a checkpoint in this process alone, for generation and export.

    Raises:
        DamagedCheckpoint: a file is missing or has another size than was written.
        ValueError: the checkpoint has no such tensor, or one of another shape.
    """
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    state = {
        f"master/{name}": Boxes(tuple(values.shape), {(0,) * values.dim(): values})
        for name, values in weights.items()
    }
    content = read_index(checkpoint)
    check_files(checkpoint, content["files"], content, checksums=False)
    reader, planner = Reader(checkpoint), BoxLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner)
    return weights
