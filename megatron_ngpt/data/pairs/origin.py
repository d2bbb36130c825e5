"""What the tools for pairs have in common: opening, checking, describing what they made."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.indexed.format import pair
from megatron_ngpt.data.known import same_tokens
from megatron_ngpt.data.pairs.manifest import manifest_of


def open_pairs(
    prefixes: Sequence[str], outputs: Sequence[str], copies: bool = False
) -> list[IndexedDataset]:
    """Open pairs that are to be read together.

    Args:
        prefixes: of the pairs.
        outputs: prefixes that will be written.
        copies: whether a copy of a pair may be among them.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a pair is corrupt, named twice by whatever names, also an output, or made
            with another tokenizer than the others, as far as manifests say.
    """
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    for number, dataset in enumerate(datasets):
        for other in datasets[:number]:
            one_file = _same_file(dataset.files[0], other.files[0])
            if one_file or (not copies and same_tokens(dataset, other)):
                way_out = "" if one_file else "; tools/deduplicate_dataset.py takes copies"
                same = "" if one_file else f" (it is a copy of {other.prefix})"
                raise ValueError(f"--input names {dataset.prefix} twice{same}{way_out}")
        for output in outputs:
            if any(_same_file(new, file) for new in pair(output) for file in dataset.files):
                raise ValueError(f"--output-prefix {output} is an input, too: choose another name")
    tokenizers = {_tokenizer(dataset).get("sha256"): dataset.prefix for dataset in datasets}
    known = [prefix for sha256, prefix in tokenizers.items() if sha256]
    if len(known) > 1:
        raise ValueError(
            f"{known[0]} and {known[1]} were made with different tokenizers, as their manifests "
            "say: preprocess one of them again"
        )
    return datasets


def origin_of(
    made_by: str, datasets: Sequence[IndexedDataset], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The beginning of a manifest: how the pair was made, and of which pairs."""
    manifests = [manifest_of(dataset) or {} for dataset in datasets]
    made = [manifest.get("tokenizer") for manifest in manifests]
    for dataset, tokenizer in zip(datasets, made, strict=True):
        if not tokenizer and any(made):
            print(
                f"{dataset.prefix} does not say which tokenizer made it, so the new pair cannot",
                file=sys.stderr,
            )
    return {
        "made_by": made_by,
        "tokenizer": made[0] if all(made) else None,
        "eod": _end_of(manifests),
        "options": dict(options),
        "sources": [
            {
                "pair": dataset.prefix,
                "documents": dataset.document_count,
                "tokens": dataset.token_count,
                "crc32": manifest.get("crc32"),
                **_line(manifest),
            }
            for dataset, manifest in zip(datasets, manifests, strict=True)
        ],
        "records": sum(dataset.document_count for dataset in datasets),
    }


def special_texts(datasets: Sequence[IndexedDataset]) -> int | None:
    """Documents of all that spell out a special token, None where one does not say."""
    counts = [(manifest_of(dataset) or {}).get("special_texts") for dataset in datasets]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _end_of(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which id ends the documents, and whether all have it; None for what is not known of all."""
    ids, appended = set(), set()
    for manifest in manifests:
        end, options = manifest.get("eod") or {}, manifest.get("options") or {}
        ids.add(end.get("id"))
        appended.add(end.get("appended", options.get("append_eod")))
    some = False if False in appended else None
    return {
        "id": ids.pop() if len(ids) == 1 else None,
        "appended": appended.pop() if len(appended) == 1 else some,
    }


def _line(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How a pair was made out of other pairs, if it was."""
    if not any("pair" in source for source in manifest.get("sources") or ()):
        return {}
    return {name: manifest[name] for name in ("made_by", "options", "sources") if name in manifest}


def _tokenizer(dataset: IndexedDataset) -> dict[str, Any]:
    return (manifest_of(dataset) or {}).get("tokenizer") or {}


def _same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
