"""The documents of a pair in random order, in bounded memory."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.pairs.blocks import blocks, read_block
from megatron_ngpt.data.pairs.manifest import write_manifest
from megatron_ngpt.data.pairs.origin import open_pairs, origin_of, special_texts
from megatron_ngpt.data.permutation import Permutation

# Each holds four files open, and 1,024 is the usual limit.
_MOST_BUCKETS = 200
MEGABYTE = 10**6
_WRITTEN = 1 << 12


def shuffle(prefix: str, output: str, seed: int, memory_mb: int) -> IndexedWriter:
    """Write the documents of a pair in an order that depends on their number and the seed alone.

    Documents are dealt to buckets by their place in the new order, on disk beside the output; then
    each bucket, which fits in memory, is put in order. Every byte is written twice.

    Args:
        prefix: of the pair.
        output: prefix of the new one.
        seed: chooses the order.
        memory_mb: MB of tokens to hold at a time.

    Raises:
        FileNotFoundError, ValueError: see ``open_pairs``; also when so little memory would take
            too many buckets.
    """
    (dataset,) = datasets = open_pairs([prefix], [output])
    size = dataset.token_count * dataset.dtype.itemsize
    # Twice: what is read and what is written of a bucket, and buckets are not equally large.
    buckets = max(1, -(-3 * size // (memory_mb * MEGABYTE)))
    if buckets > _MOST_BUCKETS:
        least = -(-3 * size // (_MOST_BUCKETS * MEGABYTE))
        raise ValueError(f"--memory-mb {memory_mb}: {prefix} needs {least} or more")
    order = Permutation(max(1, dataset.document_count), (seed,))
    with (
        tempfile.TemporaryDirectory(prefix=f"{Path(output).name}.", dir=Path(output).parent) as tmp,
        IndexedWriter(output, dataset.dtype, checksum=True) as writer,
    ):
        _deal(dataset, order, [Path(tmp) / f"{number}" for number in range(buckets)])
        for number in range(buckets):
            _write_in_order(Path(tmp) / f"{number}", writer)
    origin = origin_of("shuffle_dataset", datasets, {"seed": seed})
    write_manifest(writer, {**origin, "special_texts": special_texts(datasets), "removed": {}})
    return writer


def _deal(dataset: IndexedDataset, order: Permutation, buckets: list[Path]) -> None:
    per_bucket = -(-dataset.document_count // len(buckets))
    with ExitStack() as stack:
        writers = [stack.enter_context(IndexedWriter(path, dataset.dtype)) for path in buckets]
        places = [stack.enter_context(_places(path).open("wb")) for path in buckets]
        for block in blocks([dataset], "deal"):
            numbers = order(np.arange(block.first, block.first + len(block.sequences)))
            bucket_of = numbers // per_bucket
            for bucket in np.unique(bucket_of).tolist():
                block.select(bucket_of == bucket).write(writers[bucket])
                places[bucket].write(numbers[bucket_of == bucket].tobytes())


def _write_in_order(bucket: Path, writer: IndexedWriter) -> None:
    part = IndexedDataset(bucket)
    order = np.argsort(np.fromfile(_places(bucket), np.int64))
    for start in range(0, len(order), _WRITTEN):
        found = [read_block(part, n, n + 1) for n in order[start : start + _WRITTEN].tolist()]
        writer.add_block(
            np.concatenate([block.tokens for block in found]),
            np.concatenate([block.lengths for block in found]),
            np.concatenate([block.sequences for block in found]),
        )
    for path in (f"{bucket}.bin", f"{bucket}.idx", _places(bucket)):
        Path(path).unlink()


def _places(bucket: Path) -> Path:
    return Path(f"{bucket}.places")
