"""What tells a corpus apart from another one, wherever it lies: sizes, counts and checksums."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ngpt.config import DataConfig, blends_of
from megatron_ngpt.data.corpus import Dataset, Stage
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.pairs.manifest import read_manifest

SAMPLES, BLOCK = 64, 4096
"""Pieces of a file, and their bytes, that a checksum is taken of: whole files are too large."""


def describe(data: DataConfig, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The blends of a run and their corpora, for its ledger."""
    return [
        {
            "setting": setting,
            "first_token": stage.first_token,
            "corpora": [
                {
                    "name": share.name,
                    "prefix": str(share.corpus.dataset.prefix),
                    "weight": share.weight,
                    "epochs": share.epochs,
                    "identity": identity(share.corpus.dataset),
                }
                for share in stage.shares
            ],
        }
        for setting, stage in zip(blends_of(data), stages, strict=True)
    ]


def identity(dataset: Dataset) -> dict[str, Any]:
    """Facts of which all are equal for two copies of a corpus, and hardly for any other two.

    Counts of documents and tokens, sizes, CRC-32 of pieces spread over each file, and the whole
    files' CRC-32 from the manifest, where there is one.
    """
    found: dict[str, Any] = {"tokens": dataset.token_count, "documents": dataset.document_count}
    for path in dataset.files:
        kind = path.suffix[1:]
        found[f"{kind}_bytes"] = path.stat().st_size
        found[f"{kind}_pieces"] = _pieces(path)
    manifest = None if isinstance(dataset, FlatDataset) else read_manifest(dataset.prefix)
    if manifest and "crc32" in manifest:
        found["crc32"] = manifest["crc32"]
    return found


def _pieces(path: Path) -> int:
    """CRC-32 of at most SAMPLES pieces, the first and the last among them."""
    size, crc = path.stat().st_size, 0
    last = max(0, size - BLOCK)
    with path.open("rb", buffering=0) as stream:
        for at in sorted({last * n // (SAMPLES - 1) for n in range(SAMPLES)}):
            crc = zlib.crc32(os.pread(stream.fileno(), BLOCK, at), crc)
    return crc
