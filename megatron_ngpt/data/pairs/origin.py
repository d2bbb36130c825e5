"""What the tools for pairs have in common: opening, checking, describing what they made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.pairs.manifest import read_manifest


def open_pairs(prefixes: Sequence[str], outputs: Sequence[str]) -> list[IndexedDataset]:
    """Open pairs that are to be read together.

    Args:
        prefixes: of the pairs.
        outputs: prefixes that will be written.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a pair is corrupt, named twice, also an output, or made with another
            tokenizer than the others, as far as manifests say.
    """
    names = [os.path.normpath(prefix) for prefix in prefixes]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"--input names {name} twice")
        if name in map(os.path.normpath, outputs):
            raise ValueError(f"--output-prefix {name} is an input, too: choose another name")
    tokenizers = {_tokenizer(prefix).get("sha256"): prefix for prefix in prefixes}
    known = [prefix for sha256, prefix in tokenizers.items() if sha256]
    if len(known) > 1:
        raise ValueError(
            f"{known[0]} and {known[1]} were made with different tokenizers, as their manifests "
            "say: preprocess one of them again"
        )
    return [IndexedDataset(prefix) for prefix in prefixes]


def origin_of(
    made_by: str, datasets: Sequence[IndexedDataset], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The beginning of a manifest: how the pair was made, and of which pairs."""
    manifests = [read_manifest(dataset.prefix) or {} for dataset in datasets]
    tokenizer = next((one["tokenizer"] for one in manifests if one.get("tokenizer")), None)
    return {
        "made_by": made_by,
        "tokenizer": tokenizer,
        "options": dict(options),
        "sources": [
            {
                "pair": dataset.prefix,
                "documents": dataset.document_count,
                "tokens": dataset.token_count,
                "crc32": manifest.get("crc32"),
            }
            for dataset, manifest in zip(datasets, manifests, strict=True)
        ],
        "records": sum(dataset.document_count for dataset in datasets),
    }


def _tokenizer(prefix: str) -> dict[str, Any]:
    return (read_manifest(prefix) or {}).get("tokenizer") or {}
