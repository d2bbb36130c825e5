"""Text files to .bin/.idx pairs: read, encode in threads, write in the order of the input."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from megatron_ngpt.data.bulk import BulkEncoder, EncoderName, bulk_encoder
from megatron_ngpt.data.indexed import IndexedWriter, dtype_for
from megatron_ngpt.data.progress import Progress
from megatron_ngpt.data.records import (
    READERS,
    Document,
    RecordBatch,
    Refusal,
    find_files,
    in_batches,
)
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Column: TypeAlias = tuple[np.ndarray, np.ndarray]  # [tokens] ids, i64[documents] lengths
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """What to make of which files."""

    inputs: Sequence[str]
    """Files and globs."""

    output_prefix: str
    """Each key makes ``PREFIX_<key>_document.bin`` and ``.idx``; missing folders are made."""

    tokenizer: str
    """SentencePiece model file."""

    format: Literal["jsonl", "text"] = "jsonl"
    """A JSON object a line, or a document a file."""

    json_keys: Sequence[str] = ("text",)
    """Keys whose text is encoded."""

    append_eod: bool = False
    """End every document with the tokenizer's end id."""

    on_error: Literal["refuse", "skip"] = "refuse"
    """Whether a record that cannot be used ends the job or is left out and counted."""

    encoder: EncoderName = "auto"
    """Library that encodes."""

    workers: int = 0
    """Threads that encode; 0 means one per core."""

    log_interval: int = 1000
    """Documents between progress lines where stderr is no terminal."""


class _Encoded(NamedTuple):
    """A batch as ids."""

    columns: list[_Column]
    """[keys]"""

    documents: int
    refusals: list[Refusal]
    size: int


@dataclass
class Summary:
    """What a job has done so far."""

    prefixes: list[str]
    """Of the pairs, one per key."""

    documents: int = 0
    tokens: int = 0
    """Of all keys together."""

    size: int = 0
    """Bytes read."""

    refused: Counter[str] = field(default_factory=Counter)
    """Records left out, by reason."""

    first_refusals: list[Refusal] = field(default_factory=list)
    """A few of them."""

    def add(self, batch: _Encoded) -> None:
        """Count a batch that has been written."""
        self.documents += batch.documents
        self.tokens += sum(ids.size for ids, _ in batch.columns)
        self.size += batch.size
        self.refused.update(refusal.reason for refusal in batch.refusals)
        self.first_refusals += batch.refusals[: _SHOWN - len(self.first_refusals)]


def preprocess(job: PreprocessJob, report: Callable[[str], None]) -> Summary:
    """Encode all documents and write one pair per key, or leave no pair at all.

    The bytes written depend on the input and the tokenizer, not on encoder or workers. At most
    ``workers + 2`` batches are in memory, and a batch is 8 MiB of input or a single document.

    Args:
        job: inputs, output and how.
        report: called with a line that says how the job is done.

    Raises:
        FileNotFoundError: without the tokenizer file.
        ModuleNotFoundError: when gigatoken is asked for and not installed.
        ValueError: for a setting that cannot work, for a record that cannot be used unless
            ``on_error`` is "skip", and when no document is left.
    """
    _check(job)
    files = find_files(job.inputs)
    total = sum(path.stat().st_size for path in files)
    tokenizer = SentencePieceTokenizer(job.tokenizer)
    end_id = _end_id(tokenizer) if job.append_eod else None
    encoder, why = bulk_encoder(tokenizer, job.encoder)
    workers = job.workers or _cores()
    how = f"by {encoder.name}{why and f' ({why})'} in {workers} thread(s)"
    report(f"{total / 1e6:.1f} MB in {len(files)} file(s), encoded {how}")

    dtype = dtype_for(tokenizer.vocab_size)
    records = chain.from_iterable(READERS[job.format](path, job.json_keys) for path in files)
    batches = in_batches(records, encoder.batch_bytes)
    with ThreadPoolExecutor(workers) as pool:
        encode = partial(_encode, encoder, end_id, dtype)
        return _write_pairs(_map_in_order(pool, encode, batches, workers), job, dtype, total)


def _check(job: PreprocessJob) -> None:
    if job.workers < 0:
        raise ValueError(f"--workers {job.workers}: must be 1 or more, or 0 for one per core")
    if job.log_interval < 1:
        raise ValueError(f"--log-interval {job.log_interval}: must be 1 or more")
    if job.format == "text" and len(job.json_keys) > 1:
        raise ValueError(f"--json-keys {' '.join(job.json_keys)}: plain text has no keys; give one")
    if len(set(job.json_keys)) < len(job.json_keys):
        raise ValueError(f"--json-keys {' '.join(job.json_keys)}: a key is given twice")


def _end_id(tokenizer: SentencePieceTokenizer) -> int:
    if tokenizer.eos_id is None:
        raise ValueError(
            f"--append-eod: tokenizer {tokenizer.path} has no end id (eos); train it with one or "
            "leave the flag out"
        )
    return tokenizer.eos_id


def _cores() -> int:
    # The cores this process may use, where the system tells: a job often owns part of a node.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map_in_order(
    pool: Executor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """``map`` in a pool, results in the order of the items, at most ``ahead + 1`` in the pool."""
    running: deque[Future[_Out]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _encode(
    encoder: BulkEncoder, end_id: int | None, dtype: np.dtype, batch: RecordBatch
) -> _Encoded:
    keys = zip(*(document.texts for document in batch.documents), strict=True)
    columns, empty = _drop_empty(batch.documents, [encoder.encode(texts) for texts in keys])
    columns = [(ids.astype(dtype), lengths) for ids, lengths in columns]
    if end_id is not None:
        columns = [(np.insert(ids, np.cumsum(n), end_id), n + 1) for ids, n in columns]
    documents = len(batch.documents) - len(empty)
    return _Encoded(columns, documents, batch.refusals + empty, batch.size)


def _drop_empty(
    documents: list[Document], columns: list[_Column]
) -> tuple[list[_Column], list[Refusal]]:
    """Take out documents that have no token under some key."""
    if all(lengths.all() for _, lengths in columns):
        return columns, []
    filled = np.all([lengths > 0 for _, lengths in columns], axis=0)
    empty = [documents[number] for number in np.flatnonzero(~filled)]
    kept = [(ids[np.repeat(filled, count)], count[filled]) for ids, count in columns]
    return kept, [
        Refusal(path, line, size, "empty text", "it encodes to no token")
        for path, line, size, _ in empty
    ]


def _write_pairs(
    batches: Iterable[_Encoded], job: PreprocessJob, dtype: np.dtype, total: int
) -> Summary:
    summary = Summary([f"{job.output_prefix}_{key}_document" for key in job.json_keys])
    Path(job.output_prefix).parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(name, dtype)) for name in summary.prefixes]
        progress = stack.enter_context(Progress(total, job.log_interval))
        for batch in batches:
            if batch.refusals and job.on_error == "refuse":
                raise batch.refusals[0].error()
            for writer, (ids, lengths) in zip(writers, batch.columns, strict=False):
                writer.add_documents(ids, lengths)
            summary.add(batch)
            progress.update(summary.size, summary.documents, summary.tokens)
        if not summary.documents:
            raise ValueError(f"no document can be used; left out: {dict(summary.refused)}")
    return summary
