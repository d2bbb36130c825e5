"""Who made a corpus, as its manifest tells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.known import Dataset
from megatron_ngpt.data.pairs.manifest import manifest_of

ANY = "any"
"""In place of a tokenizer's hash: do not compare."""

COMPARE_NOT = ", or set data.tokenizer_sha256 to any where both give the same ids"


@dataclass(frozen=True)
class Provenance:
    """What is known of a corpus; everything may be unknown."""

    tokenizer: str = ""
    """SHA-256 of the tokenizer's file."""

    tokenizer_file: str = ""
    vocab_size: int = 0
    """Of the tokenizer; 0 when unknown."""

    eod: int | None = None
    """The tokenizer's id that ends a document."""

    appended: bool | None = None
    """Whether that id ends every document."""

    largest_id: int | None = None
    special_texts: int = 0
    """Documents whose text spelled out a special token and got its id."""

    pieces: frozenset[tuple[str, frozenset[tuple[str, str]]]] = frozenset()
    """CRC-32 of the tokens of this pair, and of those that it was made of; with each the splits in
    between, as (shares, name)."""

    @classmethod
    def of(cls, dataset: Dataset) -> Provenance | None:
        """What the manifest of a corpus says; None without one.

        Raises:
            ValueError: it is damaged, or that of another pair.
        """
        content = manifest_of(dataset) if isinstance(dataset, IndexedDataset) else None
        if content is None:
            return None
        tokenizer = content.get("tokenizer") or {}
        end = content.get("eod") or {}
        options = content.get("options") or {}
        kept = options.get("special_text", "keep") == "keep"
        return cls(
            tokenizer=tokenizer.get("sha256", ""),
            tokenizer_file=tokenizer.get("file", ""),
            vocab_size=tokenizer.get("vocab_size", 0),
            eod=end.get("id"),
            appended=end.get("appended", options.get("append_eod")),
            largest_id=content.get("largest_id"),
            special_texts=(content.get("special_texts") or 0) if kept else 0,
            pieces=frozenset(_pieces(content)),
        )

    def overlaps(self, other: Provenance) -> bool:
        """Whether both hold documents of one pair, as far as manifests tell.

        Not when they are different sides of one split: it goes by content.
        """
        return any(
            name == its_name and not _apart(splits, its_splits)
            for name, splits in self.pieces
            for its_name, its_splits in other.pieces
        )


def _pieces(content: Mapping[str, Any]) -> Iterator[tuple[str, frozenset[tuple[str, str]]]]:
    if crc := (content.get("crc32") or {}).get(".bin"):
        yield f"{crc} of {content.get('tokens')}", frozenset()
    options = content.get("options") or {}
    split = set()
    if "shares" in options and "name" in options:
        split = {(json.dumps(options["shares"]), options["name"])}
    for source in content.get("sources") or ():
        if "pair" in source:
            for name, splits in _pieces(source):
                yield name, splits | split


def _apart(a: frozenset[tuple[str, str]], b: frozenset[tuple[str, str]]) -> bool:
    return any(shares == other and name != its for shares, name in a for other, its in b)


def check_tokenizer(sha256: str, path: str | Path, setting: str, way_out: str = "") -> str:
    """Hold a tokenizer's file against the one that made a run's corpora.

    Args:
        sha256: of that one; "" where it is not known, "any" for no comparison.
        path: the file.
        setting: what named it.
        way_out: besides naming the right one.

    Returns:
        The file's SHA-256.

    Raises:
        ValueError: it is another one.
    """
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if sha256 not in ("", ANY, found):
        raise ValueError(
            f"{setting} = {path} is not the tokenizer that made the corpora: its SHA-256 begins "
            f"with {found[:12]}, theirs with {sha256[:12]}; name that one{way_out}"
        )
    return found
