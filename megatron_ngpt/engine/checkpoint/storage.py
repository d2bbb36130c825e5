"""Storage for torch.distributed.checkpoint: safetensors files and a JSON index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from megatron_ngpt.engine.checkpoint import files
from megatron_ngpt.engine.checkpoint.index import (
    FileFacts,
    Location,
    read_index,
)
from megatron_ngpt.engine.checkpoint.metadata import to_metadata, write_index

FILE_BYTES = 1 << 30
"""A rank starts a new file after this many bytes: what one thread checks when it is loaded."""


class Writer(StorageWriter):
    """Writes this rank's boxes and, on the coordinator, the index.

    Args:
        rank: number used in this rank's file names.
        begin: called on the coordinator before anyone writes; makes the folder to write into.
        whole: called on the coordinator with that folder when all files and the index are in it.

    What fails on one rank, these calls included, is raised on all.
    """

    def __init__(self, rank: int, begin: Callable[[], Path], whole: Callable[[Path], None]) -> None:
        super().__init__()
        self.rank, self.begin, self.whole = rank, begin, whole

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to reset: a writer serves one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder and tell every rank where it is; the plans stay as they are."""
        folder = self.begin()
        return [dataclasses.replace(plan, storage_data=folder) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the plan's boxes, a file at a time, each synced to disk."""
        self.folder: Path = plan.storage_data
        results: list[WriteResult] = []
        for number, items in enumerate(_batches(plan.items)):
            results += self._write_file(
                f"rank_{self.rank:05d}_{number}.safetensors", items, planner
            )
        return _done(results)

    def _write_file(
        self, name: str, items: list[WriteItem], planner: SavePlanner
    ) -> list[WriteResult]:
        tensors: dict[str, Tensor] = {}
        for item in items:
            values = planner.resolve_data(item)
            assert isinstance(values, Tensor)
            tensors[_key(item.index)] = values
        path = self.folder / name
        crc32 = files.write(path, tensors)
        facts = FileFacts(path.stat().st_size, crc32)
        return [
            WriteResult(item.index, _bytes(item), Location(name, _key(item.index), facts))
            for item in items
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, when all ranks have written."""
        located = {r.index: r.storage_data for of_rank in results for r in of_rank}
        write_index(self.folder, metadata, located)
        self.whole(self.folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Only a Writer made by hand is used."""
        return False


def _key(index: MetadataIndex) -> str:
    assert index.offset is not None
    return f"{index.fqn}@{','.join(map(str, index.offset))}"


def _bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _batches(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    batch: list[WriteItem] = []
    size = 0
    for item in items:
        if batch and size + _bytes(item) > FILE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += _bytes(item)
    if batch:
        yield batch


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Reader(StorageReader):
    """Reads from each file no more than the wanted boxes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.located: dict[MetadataIndex, Location] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to reset: a reader serves one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index."""
        return to_metadata(read_index(self.folder))

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Keep where each box lies."""
        self.located = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy every overlap, file by file."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.located[item.storage_index].file, []).append(item)
        for name, items in by_file.items():
            with files.Stored(self.folder / name) as stored:
                for item in items:
                    self._copy(stored, item, planner)
        return _done(None)

    @torch.no_grad()
    def _copy(self, stored: files.Stored, item: ReadItem, planner: LoadPlanner) -> None:
        key = self.located[item.storage_index].key
        stored.read(key, item.storage_offsets, planner.resolve_tensor(item))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Only a Reader made by hand is used."""
        return False
