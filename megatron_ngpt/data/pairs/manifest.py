"""The JSON file beside a pair: what it was made of, what is in it, checksums."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.indexed.assembly import Assembly
from megatron_ngpt.data.indexed.files import crc32_of
from megatron_ngpt.data.indexed.format import pair
from megatron_ngpt.plain_json import parse_object

_SHAPE: dict[str, Any] = {
    **{"documents": int, "tokens": int, "dtype": str, "largest_id": int, "special_texts": int},
    "crc32": {".bin": str, ".idx": str},
    "tokenizer": {"sha256": str, "file": str, "vocab_size": int},
    "eod": {"id": int, "appended": bool},
    "options": {"special_text": str, "append_eod": bool, "name": str},
    "sources": list,
}
"""What is asked of a manifest, where it is there; more may be."""
_FRESH = "copy the one that was made with the pair, or delete it"


def manifest_path(prefix: str | Path) -> Path:
    """PREFIX.manifest.json."""
    return Path(f"{prefix}.manifest.json")


def write_manifest(writer: IndexedWriter | Assembly, origin: Mapping[str, Any]) -> None:
    """Write the manifest of a pair that is complete.

    Args:
        writer: has written the pair, with checksums.
        origin: how it was made; the same job must give the same.
    """
    content = {
        **origin,
        "documents": writer.document_count,
        "tokens": writer.token_count,
        "dtype": writer.dtype.name,
        "largest_id": writer.largest_id,
        "crc32": writer.checksums,
    }
    write_json(manifest_path(writer.prefix), content)


def read_manifest(prefix: str | Path) -> dict[str, Any] | None:
    """The manifest of a pair, or None where it has none, as pairs of other programs.

    Raises:
        ValueError: the file holds something else.
    """
    path = manifest_path(prefix)
    if not path.exists():
        return None
    try:
        content = parse_object(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path}: no manifest ({err}): {_FRESH}") from err
    if problem := _misfit(content, _SHAPE):
        raise ValueError(f"{path}: {problem} is not what a manifest says there: {_FRESH}")
    return content


def _misfit(content: Mapping[str, Any], shape: Mapping[str, Any]) -> str:
    """Name of the first value that is of another type than is reckoned with, "" if none is."""
    for name, kind in shape.items():
        value = content.get(name)
        if value is None:
            continue
        if isinstance(kind, dict):
            found = _misfit(value, kind) if isinstance(value, dict) else "it"
        else:
            found = "" if type(value) is kind else "it"
        if found:
            return name if found == "it" else f"{name}.{found}"
    for source in content.get("sources") or ():
        if not isinstance(source, dict) or ("pair" in source and _misfit(source, _SHAPE)):
            return "sources"
    return ""


def manifest_of(dataset: IndexedDataset) -> dict[str, Any] | None:
    """The manifest of an open pair; None without one.

    Raises:
        ValueError: it belongs to another pair, as its counts say.
    """
    content = read_manifest(dataset.prefix)
    if content is None:
        return None
    found = {
        "documents": dataset.document_count,
        "tokens": dataset.token_count,
        "dtype": dataset.dtype.name,
    }
    for name, value in found.items():
        if content.get(name, value) != value:
            raise ValueError(
                f"{manifest_path(dataset.prefix)} says {name} = {content[name]}, but the pair has "
                f"{value}: it is the manifest of another pair; {_FRESH}"
            )
    return content


def verify(prefix: str | Path) -> str:
    """Read a pair whole and hold it against its manifest.

    Returns:
        What was checked, to be shown.

    Raises:
        FileNotFoundError: when a file of the pair is missing.
        ValueError: naming what is wrong.
    """
    dataset = IndexedDataset(prefix)
    dataset.verify()
    manifest = manifest_of(dataset)
    if manifest is None:
        return "structure is sound; no manifest, so no checksums to compare"
    for path in pair(prefix):
        expected, crc = (manifest.get("crc32") or {}).get(path.suffix), crc32_of(path)
        if crc != expected:
            raise ValueError(
                f"{path}: CRC-32 {crc}, but its manifest says {expected}: the file was damaged or "
                "changed after it was made; copy it again or make it anew"
            )
    return "structure is sound and checksums agree"


def write_json(path: Path, content: Any) -> None:
    """Write a file that appears whole or not at all."""
    temporary = Path(f"{path}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
