"""The model's weights from a checkpoint of any topology, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.engine.checkpoint.boxes import Boxes
from megatron_ngpt.engine.checkpoint.index import check_files, read_index
from megatron_ngpt.engine.checkpoint.planner import BoxLoadPlanner
from megatron_ngpt.engine.checkpoint.storage import Reader
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.fused import pick_operations


def load_model(checkpoint: Path, model: ModelConfig, device: torch.device) -> NGPT:
    """The whole model with a checkpoint's fp32 weights on one device, ready for inference.

    Its operations are the fastest that the device has, whatever the run was trained with.

    Raises:
        DamagedCheckpoint: a file is missing or has another size than was written.
        ValueError: the checkpoint is of another model.
    """
    made = NGPT(model, ops=pick_operations("auto", device))
    parameters = dict(made.named_parameters())
    assert parameters.keys() == parameter_table(model).keys(), "the table says what a model holds"
    # into the parameters themselves, so that those which are one (a tied head) stay one
    fill({name: parameter.data for name, parameter in parameters.items()}, checkpoint)
    return made.to(device).eval()


def load_weights(checkpoint: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Whole fp32 parameters of a checkpoint in this process alone, for evaluation and export.

    Raises:
        DamagedCheckpoint: a file is missing or has another size than was written.
        ValueError: the checkpoint has no such tensor, or one of another shape.
    """
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    fill(weights, checkpoint)
    return weights


def fill(weights: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Read fp32 parameters of a checkpoint into tensors of their whole shape, on the CPU.

    Raises:
        DamagedCheckpoint: a file is missing or has another size than was written.
        ValueError: the checkpoint has no such tensor, or one of another shape.
    """
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
