"""The index between ``index.json`` and torch.distributed.checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_ngpt.engine.checkpoint.index import (
    FORMAT,
    FileFacts,
    Location,
    checksum,
    facts_of,
)
from megatron_ngpt.run.durable import INDEX, write_durably


def write_index(folder: Path, metadata: Metadata, located: dict[MetadataIndex, Location]) -> None:
    """Write ``index.json`` from what torch.distributed.checkpoint planned and the ranks wrote.

    Files of the folder that hold no tensors are listed too.
    """
    tensors = {}
    for name, stored in sorted(metadata.state_dict_metadata.items()):
        assert isinstance(stored, TensorStorageMetadata)
        tensors[name] = {
            "dtype": str(stored.properties.dtype).removeprefix("torch."),
            "shape": list(stored.size),
            "boxes": [_box(name, chunk, located) for chunk in stored.chunks],
        }
    facts = {place.file: place.facts for place in located.values()}
    others = {p.name: facts_of(p) for p in folder.iterdir() if p.name not in facts}
    files = {name: asdict(found) for name, found in (facts | others).items()}
    content = {"format": FORMAT, "files": dict(sorted(files.items())), "tensors": tensors}
    content["crc32"] = checksum(content)
    write_durably(folder / INDEX, json.dumps(content, indent=1))


def _box(name: str, chunk: ChunkStorageMetadata, located: dict[MetadataIndex, Location]) -> dict:
    place = located[MetadataIndex(name, chunk.offsets)]
    box = {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
    return box | {"file": place.file, "key": place.key}


def to_metadata(content: dict) -> Metadata:
    """The index as torch.distributed.checkpoint wants it."""
    stored: dict = {}
    located: dict[MetadataIndex, Location] = {}
    for name, tensor in content["tensors"].items():
        chunks = []
        for number, box in enumerate(tensor["boxes"]):
            offsets, sizes = torch.Size(box["offsets"]), torch.Size(box["sizes"])
            chunks.append(ChunkStorageMetadata(offsets, sizes))
            facts = FileFacts(**content["files"][box["file"]])
            located[MetadataIndex(name, offsets, number)] = Location(box["file"], box["key"], facts)
        properties = TensorProperties(dtype=getattr(torch, tensor["dtype"]))
        stored[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
    return Metadata(state_dict_metadata=stored, storage_data=located)
