"""Shards to pairs: read, encode in threads, write in the order of the input."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from megatron_ngpt.data.bulk import Tokenizer, bulk_encoder, load_tokenizer
from megatron_ngpt.data.indexed import IndexedWriter, dtype_for
from megatron_ngpt.data.preprocess.job import PreprocessJob
from megatron_ngpt.data.preprocess.long_documents import LongDocuments, LongIds
from megatron_ngpt.data.preprocess.parts import Parts, Report
from megatron_ngpt.data.preprocess.plan import Shard
from megatron_ngpt.data.preprocess.special import REASON, SpecialText
from megatron_ngpt.data.sources import Document, RecordBatch, Refusal, in_batches, read_piece
from megatron_ngpt.data.sources.jsonl import lines_before
from megatron_ngpt.data.sources.long import LongText
from megatron_ngpt.data.sources.unusable import UnusableError

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Column: TypeAlias = tuple[np.ndarray, np.ndarray]  # [tokens] ids, i64[documents] lengths
Watch: TypeAlias = Callable[[int, int, int], None]
"""Told the bytes, documents and tokens of each batch that has been written."""


class _Encoded(NamedTuple):
    """A batch as ids."""

    columns: list[_Column]
    """[keys]"""

    long: list[LongIds]
    """[keys] of a batch that is one document too long for memory, else empty."""

    documents: int
    refusals: list[Refusal]
    size: int
    special: list[int]
    """[keys] documents that spell out a special token."""

    @property
    def tokens(self) -> int:
        """Of all keys."""
        return sum(ids.size for ids, _ in self.columns) + sum(ids.size for ids in self.long)


_Item: TypeAlias = Shard | RecordBatch | dict[str, int]
_Result: TypeAlias = Shard | _Encoded | dict[str, int]


class ShardEncoder:
    """Encodes shards, with all that this takes loaded once.

    Args:
        job: what to make.
        parts: where finished shards go.
        threads: threads that encode.

    Attributes:
        how: the encoder, and why it is not a faster one, to be shown.

    Raises:
        FileNotFoundError: without the tokenizer file.
        ModuleNotFoundError: when an encoder is asked for and not installed.
        ValueError: for an end mark that the tokenizer does not have, and for special text that it
            cannot take as the job wants it.
    """

    def __init__(self, job: PreprocessJob, parts: Parts, threads: int) -> None:
        self._job, self._parts, self._threads = job, parts, threads
        tokenizer = self._tokenizer = load_tokenizer(job.tokenizer)
        self._end_id = _end_id(tokenizer) if job.append_eod else None
        self._dtype = dtype_for(tokenizer.vocab_size)
        self._special = SpecialText(tokenizer, job.special_text)
        self._encoder, why = bulk_encoder(tokenizer, job.encoder)
        self.how = f"{self._encoder.name}{why and f' ({why})'}"

    @cached_property
    def _long(self) -> LongDocuments:
        """Made when the first such document comes: it asks for every piece of the tokenizer."""
        return LongDocuments(self._encoder, self._tokenizer.has_pieces_across_spaces())

    def run(self, shards: Iterable[Shard], watch: Watch) -> None:
        """Encode shards, each into a pair of its own per key.

        At most ``threads + 2`` batches are in memory, and a batch is 8 MiB of input or a document.

        Raises:
            ValueError: for a record that cannot be used unless the job leaves such records out.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            results = map_in_order(pool, self._encode, self._read(shards), self._threads)
            for shard in results:
                assert isinstance(shard, Shard), shard
                self._write(shard, results, watch)

    def _read(self, shards: Iterable[Shard]) -> Iterator[_Item]:
        """Each shard, its batches, and the number of records of each of its pieces."""
        for shard in shards:
            yield shard
            records: dict[str, int] = {}
            yield from in_batches(self._records(shard, records), self._encoder.batch_bytes)
            yield records

    def _records(self, shard: Shard, counts: dict[str, int]) -> Iterator[Document | Refusal]:
        job = self._job
        for piece in shard.pieces:
            count = 0
            for record in read_piece(piece, job.format, job.json_keys, job.separator):
                count += 1
                yield record
            counts[piece.path] = count

    def _encode(self, item: _Item) -> _Result:
        if not isinstance(item, RecordBatch):
            return item
        if item.documents and item.documents[0].is_long:
            return self._encode_long(item.documents[0])
        documents = item.documents
        texts = [list(each) for each in zip(*(one.texts for one in documents), strict=True)]
        columns = [self._encoder.encode(each) for each in texts]
        special = [self._special.within(t, *c) for t, c in zip(texts, columns, strict=True)]
        refused: list[Refusal] = []
        if self._special.refused and any(one.any() for one in special):
            unwanted = np.any(special, axis=0)
            columns, documents, refused = self._refuse_special(columns, documents, unwanted)
            special = []
        columns, empty = _drop_empty(documents, columns)
        columns = [(ids.astype(self._dtype), lengths) for ids, lengths in columns]
        if self._end_id is not None:
            columns = [(np.insert(ids, np.cumsum(n), self._end_id), n + 1) for ids, n in columns]
        counts = [int(one.sum()) for one in special]
        refusals = item.refusals + refused + empty
        return _Encoded(columns, [], len(documents) - len(empty), refusals, item.size, counts)

    def _encode_long(self, document: Document) -> _Encoded:
        path, line, size, texts = document
        try:
            found = [self._ids_of(text) for text in texts]
            if not all(ids.size for ids in found):
                raise UnusableError("empty text", "it encodes to no token")
            special = [
                self._special.anywhere(_parts(text), ids.blocks())
                for text, ids in zip(texts, found, strict=True)
            ]
            if self._special.refused and any(special):
                raise UnusableError(REASON, self._special.detail())
        except UnusableError as err:
            reason, detail = err.args
            return _Encoded([], [], 0, [Refusal(path, line, size, reason, detail)], size, [])
        for ids in found if self._end_id is not None else ():
            ids.add(np.array([self._end_id]))
        return _Encoded([], found, 1, [], size, [int(one) for one in special])

    def _refuse_special(
        self, columns: list[_Column], documents: list[Document], unwanted: np.ndarray
    ) -> tuple[list[_Column], list[Document], list[Refusal]]:
        refused = [documents[number] for number in np.flatnonzero(unwanted)]
        kept = [documents[number] for number in np.flatnonzero(~unwanted)]
        detail = self._special.detail()
        return (
            _select(columns, ~unwanted),
            kept,
            [Refusal(path, line, size, REASON, detail) for path, line, size, _ in refused],
        )

    def _ids_of(self, text: bytes | LongText) -> LongIds:
        if isinstance(text, LongText):
            return self._long.encode(text, self._dtype)
        ids = LongIds(self._dtype)
        ids.add(self._encoder.encode([text])[0])
        return ids

    def _write(self, shard: Shard, results: Iterator[_Result], watch: Watch) -> None:
        keys, files = self._job.json_keys, self._parts.name_files(shard.number)
        report = Report(files)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    IndexedWriter(self._parts.prefix(files, key), self._dtype, checksum=True)
                )
                for key in keys
            ]
            refusals = stack.enter_context(self._parts.refusals(files).open("w", encoding="utf-8"))
            while isinstance(batch := next(results), _Encoded):
                if batch.refusals and self._job.on_error == "refuse":
                    raise _in_file(batch.refusals[0], shard).error()
                for writer, (ids, lengths) in zip(writers, batch.columns, strict=False):
                    writer.add_documents(ids, lengths)
                for writer, long in zip(writers, batch.long, strict=False):
                    writer.add_long_document(long.blocks())
                refusals.writelines(json.dumps(refusal) + "\n" for refusal in batch.refusals)
                report.add(batch.documents, batch.size, batch.refusals)
                report.special.update(dict(zip(keys, batch.special, strict=False)))
                watch(batch.size, batch.documents, batch.tokens)
        assert isinstance(batch, dict), batch
        report.records = batch
        for key, writer in zip(keys, writers, strict=True):
            counts = writer.sequence_count, writer.document_count, writer.token_count
            report.pairs[key] = *counts, int(writer.checksums[".bin"], 16), writer.largest_id
        self._parts.finish(shard.number, report)


def map_in_order(
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


def _end_id(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise ValueError(
            f"--append-eod: tokenizer {tokenizer.path} has no end id (eos); train it with one or "
            "leave the flag out"
        )
    return tokenizer.eos_id


def _drop_empty(
    documents: list[Document], columns: list[_Column]
) -> tuple[list[_Column], list[Refusal]]:
    """Take out documents that have no token under some key."""
    if all(lengths.all() for _, lengths in columns):
        return columns, []
    filled = np.all([lengths > 0 for _, lengths in columns], axis=0)
    empty = [documents[number] for number in np.flatnonzero(~filled)]
    return _select(columns, filled), [
        Refusal(path, line, size, "empty text", "it encodes to no token")
        for path, line, size, _ in empty
    ]


def _select(columns: list[_Column], wanted: np.ndarray) -> list[_Column]:
    """The documents of bool[documents] alone."""
    return [(ids[np.repeat(wanted, count)], count[wanted]) for ids, count in columns]


def _parts(text: bytes | LongText) -> Iterable[bytes]:
    return text.parts(1 << 20) if isinstance(text, LongText) else [text]


def _in_file(refusal: Refusal, shard: Shard) -> Refusal:
    """With its line counted from the beginning of the file."""
    (start,) = (piece.start for piece in shard.pieces if piece.path == refusal.path)
    return refusal._replace(line=refusal.line + lines_before(refusal.path, start))
