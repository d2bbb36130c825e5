"""Finished shards to the pairs of the job."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ngpt.data.bulk import load_tokenizer
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
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
        self._reports = [self._report(shard) for shard in shards]

    def write(self, watch: Callable[[int], object] = int) -> Summary:
        """Write the pair of each key, its manifest, and the list of what was left out.

        Raises:
            ValueError: when no document is left, or when there are refused records in finished
                shards and the job does not leave them out.
        """
        summary = Summary([self._job.prefix(key) for key in self._job.json_keys])
        for report in self._reports:
            summary.documents += report.documents
            summary.size += report.size
            summary.tokens += sum(report.tokens.values())
            summary.refused += report.refused
        if summary.refused and self._job.on_error == "refuse":
            raise next(self._refusals()).error()
        if not summary.documents:
            self._parts.remove()
            raise ValueError(f"no document can be used; left out: {dict(summary.refused)}")
        self._write_refusals(summary)
        for key, prefix in zip(self._job.json_keys, summary.prefixes, strict=True):
            self._write_pair(key, prefix, summary, watch)
        return summary

    def _report(self, shard: Shard) -> Report:
        report = self._parts.report(shard.number)
        if report is None:
            raise ValueError(
                f"shard {shard.number} of {self._parts.folder} is not finished although its "
                "process ended well: start the same command again"
            )
        return report

    def _write_pair(
        self, key: str, prefix: str, summary: Summary, watch: Callable[[int], object]
    ) -> None:
        shards = [self._parts.prefix(report.files, key) for report in self._reports]
        manifest_path(prefix).unlink(missing_ok=True)  # describes the pair there was before
        with IndexedWriter(prefix, IndexedDataset(shards[0]).dtype, checksum=True) as writer:
            for shard in shards:
                writer.add_dataset(IndexedDataset(shard), watch)
        write_manifest(writer, self._contents(key, summary))

    def _contents(self, key: str, summary: Summary) -> dict[str, Any]:
        return {
            **origin(self._job, key, self._sources),
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
