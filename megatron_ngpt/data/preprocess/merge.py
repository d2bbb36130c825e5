"""Finished shards to the pairs of the job."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ngpt.data.bulk import load_tokenizer
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.indexed.assembly import Assembly, Part
from megatron_ngpt.data.indexed.files import Stretch
from megatron_ngpt.data.pairs.manifest import manifest_path, write_manifest
from megatron_ngpt.data.preprocess.job import PreprocessJob
from megatron_ngpt.data.preprocess.parts import Parts, Report
from megatron_ngpt.data.preprocess.plan import Shard
from megatron_ngpt.data.sources import Refusal, Source

_SHOWN = 5


@dataclass
class Summary:
    """What a job has done."""

    prefixes: list[str]
    """Of the pairs, one per key."""

    documents: int = 0
    tokens: int = 0
    """Of all keys together."""

    size: int = 0
    """Bytes read, decompressed."""

    refused: Counter[str] = field(default_factory=Counter)
    """Records left out, by reason."""

    special: Counter[str] = field(default_factory=Counter)
    """Of each key: documents that spell out a special token."""

    separator_missed: bool = False
    """Whether a separator was given that came up in no file."""

    first_refusals: list[Refusal] = field(default_factory=list)
    """A few of them."""

    refusals: str = ""
    """The file that lists them all, or ""."""


def origin(job: PreprocessJob, key: str, sources: Sequence[Source]) -> dict[str, Any]:
    """What the manifest of a key's pair says of how it was made."""
    tokenizer = load_tokenizer(job.tokenizer)
    return {
        "made_by": "preprocess_data",
        "tokenizer": {
            "file": str(job.tokenizer),
            "sha256": hashlib.sha256(tokenizer.model).hexdigest(),
            "vocab_size": tokenizer.vocab_size,
        },
        "options": {
            "json_key": key,
            "json_keys": list(job.json_keys),
            "format": job.format,
            "separator": job.separator,
            "append_eod": job.append_eod,
            "special_text": job.special_text,
            "on_error": job.on_error,
        },
        "sources": [{"file": source.path, "bytes": source.size} for source in sources],
    }


class Merge:
    """Puts a job's shards together.

    Args:
        job: the job.
        sources: its files.
        parts: where its shards are.
        shards: all of them, finished.
    """

    def __init__(
        self, job: PreprocessJob, sources: Sequence[Source], parts: Parts, shards: Sequence[Shard]
    ) -> None:
        self._job, self._sources, self._parts, self._shards = job, sources, parts, shards
        self._reports: list[Report] = []

    def begin(self) -> tuple[Summary, list[Assembly]]:
        """Add up what the shards have become, and begin the pair of each key.

        Raises:
            ValueError: when no document is left, when a shard is not finished, or when there are
                refused records in finished shards and the job does not leave them out.
        """
        self._reports = [self._report(shard) for shard in self._shards]
        summary = Summary([self._job.prefix(key) for key in self._job.json_keys])
        for report in self._reports:
            summary.documents += report.documents
            summary.size += report.size
            summary.tokens += report.tokens
            summary.refused += report.refused
            summary.special += report.special
        if summary.refused and self._job.on_error == "refuse":
            raise next(self._refusals()).error()
        records = summary.documents + summary.refused.total()
        summary.separator_missed = bool(self._job.separator) and records <= len(self._sources)
        if not summary.documents:
            self._parts.remove()
            raise ValueError(f"no document can be used; left out: {dict(summary.refused)}")
        return summary, [self._begin_pair(key) for key in self._job.json_keys]

    def finish(
        self,
        summary: Summary,
        assemblies: Sequence[Assembly],
        stretches: Sequence[Sequence[Sequence[Stretch]]],
    ) -> Summary:
        """Complete the pairs, write their manifests and the list of what was left out.

        Args:
            summary, assemblies: what ``begin`` returned.
            stretches: what each rank has copied of each pair.
        """
        self._write_refusals(summary)
        for number, assembly in enumerate(assemblies):
            manifest_path(assembly.prefix).unlink(missing_ok=True)  # of the pair there was before
            assembly.finish(each for rank in stretches for each in rank[number])
            key = self._job.json_keys[number]
            write_manifest(assembly, self._contents(key, summary))
        self._parts.remove()
        return summary

    def _report(self, shard: Shard) -> Report:
        report = self._parts.report(shard.number)
        if report is None:
            raise ValueError(
                f"shard {shard.number} of {self._parts.folder} is not finished although its "
                "process ended well: start the same command again"
            )
        return report

    def _begin_pair(self, key: str) -> Assembly:
        prefixes = [str(self._parts.prefix(report.files, key)) for report in self._reports]
        parts = [
            Part(prefix, *report.pairs[key])
            for prefix, report in zip(prefixes, self._reports, strict=True)
        ]
        assembly = Assembly(self._job.prefix(key), IndexedDataset(prefixes[0]).dtype, parts)
        assembly.begin()
        return assembly

    def _contents(self, key: str, summary: Summary) -> dict[str, Any]:
        return {
            **origin(self._job, key, self._sources),
            "eod": {
                "id": load_tokenizer(self._job.tokenizer).eos_id,
                "appended": self._job.append_eod,
            },
            "special_texts": summary.special[key],
            "records": summary.documents + summary.refused.total(),
            "refused": dict(sorted(summary.refused.items())),
        }

    def _write_refusals(self, summary: Summary) -> None:
        path = Path(f"{self._job.output_prefix}_refused.jsonl")
        path.unlink(missing_ok=True)
        if not summary.refused:
            return
        with path.open("w", encoding="utf-8") as file:
            for refusal in self._refusals():
                if len(summary.first_refusals) < _SHOWN:
                    summary.first_refusals.append(refusal)
                row = {"file": refusal.path, "line": refusal.line, "reason": refusal.reason}
                file.write(json.dumps({**row, "detail": refusal.detail}) + "\n")
        summary.refusals = str(path)

    def _refusals(self) -> Iterator[Refusal]:
        """All refused records, with their lines counted from the beginning of their files."""
        before: dict[str, int] = {}
        for shard, report in zip(self._shards, self._reports, strict=True):
            with self._parts.refusals(report.files).open(encoding="utf-8") as lines:
                for line in lines:
                    refusal = Refusal(*json.loads(line))
                    yield refusal._replace(line=refusal.line + before.get(refusal.path, 0))
            for piece in shard.pieces:
                known = before.pop(piece.path, 0)
                if piece.stop is not None:
                    before[piece.path] = known + report.records[piece.path]
