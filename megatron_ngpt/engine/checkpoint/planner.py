"""Plans for torch.distributed.checkpoint: tensors as boxes in global coordinates.

What a rank holds of a parameter depends on tp, dp and ZeRO stage; described as boxes of the
unsharded parameter, what any topology wrote can be read by any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ngpt.engine.checkpoint.boxes import Boxes


class BoxSavePlanner(DefaultSavePlanner):
    """Writes every box once; of boxes that several ranks hold alike, one rank writes it."""

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        """Take a state of name -> :class:`Boxes`."""
        self.boxes: dict[str, Boxes] = state_dict
        super().set_up_planner({}, storage_meta, is_coordinator)

    def create_local_plan(self) -> SavePlan:
        """One write per box."""
        plan = super().create_local_plan()
        items = [item for name, boxes in self.boxes.items() for item in _writes(name, boxes)]
        self.plan = dataclasses.replace(plan, items=items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The values of one box."""
        index = write_item.index
        assert index.offset is not None
        return self.boxes[index.fqn].parts[tuple(index.offset)]


def _chunks(boxes: Boxes) -> list[ChunkStorageMetadata]:
    """The boxes as torch.distributed.checkpoint describes them."""
    return [
        ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=values.shape)
        for offsets, values in boxes.parts.items()
    ]


def _writes(name: str, boxes: Boxes) -> list[WriteItem]:
    return [
        WriteItem(
            index=MetadataIndex(name, chunk.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                chunk=chunk,
                properties=TensorProperties.create_from_tensor(values),
                size=torch.Size(boxes.shape),
            ),
        )
        for chunk, values in zip(_chunks(boxes), boxes.parts.values(), strict=True)
    ]


class BoxLoadPlanner(DefaultLoadPlanner):
    """Fills every box from whichever written boxes overlap it."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Take a state of name -> :class:`Boxes` whose values will be overwritten."""
        self.boxes: dict[str, Boxes] = state_dict
        super().set_up_planner({}, metadata, is_coordinator)

    def create_local_plan(self) -> LoadPlan:
        """One read per overlap of a wanted with a written box.

        Raises:
            ValueError: the checkpoint has no such tensor, or one of another shape.
        """
        return LoadPlan([item for name in self.boxes for item in self._reads(name)])

    def _reads(self, name: str) -> list[Any]:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata.get(name)
        wanted = self.boxes[name]
        if not isinstance(stored, TensorStorageMetadata):
            raise ValueError(f"the checkpoint has no tensor {name}")
        if tuple(stored.size) != wanted.shape:
            raise ValueError(
                f"{name} is {tuple(stored.size)} in the checkpoint, not {wanted.shape}"
            )
        return create_read_items_for_chunk_list(name, stored, _chunks(wanted))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Where the values of a wanted box go."""
        assert index.offset is not None
        return self.boxes[index.fqn].parts[tuple(index.offset)]
