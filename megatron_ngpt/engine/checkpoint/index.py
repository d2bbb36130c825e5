"""``index.json``: which box of which tensor lies in which file, and how to know a file is whole."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_ngpt.run.durable import INDEX, DamagedCheckpoint, write_durably

FORMAT = 1
_CHUNK = 1 << 24


@dataclass(frozen=True)
class FileFacts:
    """What a file of a checkpoint must be."""

    size: int
    """Bytes."""
    crc32: int
    """CRC-32 of the whole content."""


@dataclass(frozen=True)
class Location:
    """Where one box lies."""

    file: str
    """File name inside the checkpoint."""
    key: str
    """Tensor name inside the safetensors file."""
    facts: FileFacts
    """Of the file."""


def facts_of(path: Path) -> FileFacts:
    """Read a file once for its size and checksum."""
    crc32 = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
        return FileFacts(stream.tell(), crc32)


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


def checksum(content: dict) -> int:
    """CRC-32 of an index as it is without its own ``crc32``."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _box(name: str, chunk: ChunkStorageMetadata, located: dict[MetadataIndex, Location]) -> dict:
    place = located[MetadataIndex(name, chunk.offsets)]
    box = {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
    return box | {"file": place.file, "key": place.key}


def read_index(folder: Path) -> dict:
    """Parsed ``index.json``.

    Raises:
        DamagedCheckpoint: it is missing, or not what :func:`write_index` writes.
        ValueError: it is of another version's format.
    """
    path = folder / INDEX
    try:
        content: dict = json.loads(path.read_text(encoding="utf-8"))
        version, claimed = int(content["format"]), int(content.pop("crc32"))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DamagedCheckpoint(f"{path}: {err!r}") from err
    if claimed != checksum(content):
        raise DamagedCheckpoint(f"{path}: its content is not what was written (checksum)")
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}, this version reads format {FORMAT}")
    return content


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


def check_files(folder: Path, names: Iterable[str], content: dict, checksums: bool) -> None:
    """Compare files with the index: sizes always, checksums when asked for.

    Raises:
        DamagedCheckpoint: naming the first file that differs and how.
    """
    for name in names:
        path, expected = folder / name, FileFacts(**content["files"][name])
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        size = path.stat().st_size
        if size != expected.size:
            raise DamagedCheckpoint(f"{path} has {size} bytes, {expected.size} were written")
        if checksums and facts_of(path) != expected:
            raise DamagedCheckpoint(f"{path}: its content is not what was written (checksum)")
