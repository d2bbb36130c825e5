"""Documents that came before, exactly, left out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.pairs.blocks import blocks, widest
from megatron_ngpt.data.pairs.manifest import write_manifest
from megatron_ngpt.data.pairs.origin import open_pairs, origin_of

_RECORD = np.dtype([("digest", "V16"), ("number", "<i8")])
_DIGESTS_PER_BUCKET = 1 << 24
_MOST_BUCKETS = 256


def deduplicate(prefixes: Sequence[str], output: str) -> IndexedWriter:
    """Write the documents of pairs in order, each content once, where it comes up first.

    Contents are compared by hashes of 128 bits, which are sorted in buckets on disk beside the
    output: 25 bytes a document there, and some 800 MB of memory at most up to 4 billion documents.

    Raises:
        FileNotFoundError, ValueError: see ``open_pairs``.
    """
    datasets = open_pairs(prefixes, [output], copies=True)
    total = sum(dataset.document_count for dataset in datasets)
    with (
        tempfile.TemporaryDirectory(prefix=f"{Path(output).name}.", dir=Path(output).parent) as tmp,
        IndexedWriter(output, widest(datasets), checksum=True) as writer,
    ):
        kept = np.memmap(Path(tmp) / "kept", bool, "w+", shape=max(1, total))
        for bucket in _hash(datasets, total, Path(tmp)):
            kept[_firsts(bucket)] = True
        for block in blocks(datasets, "copy"):
            wanted = kept[block.first : block.first + len(block.sequences)]
            block.select(wanted).write(writer)
    removed = {"duplicate": total - writer.document_count}
    origin = origin_of("deduplicate_dataset", datasets, {})
    write_manifest(writer, {**origin, "removed": removed})
    return writer


def _hash(datasets: Sequence[IndexedDataset], total: int, folder: Path) -> list[Path]:
    """Files of digests and numbers, equal digests in the same one."""
    count = min(_MOST_BUCKETS, 1 + total // _DIGESTS_PER_BUCKET)
    paths = [folder / f"{number}" for number in range(count)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for block in blocks(datasets, "hash"):
            digests = block.digests()
            records = np.empty(len(digests), _RECORD)
            records["digest"] = np.frombuffer(b"".join(digests), "V16")
            records["number"] = block.first + np.arange(len(digests))
            bucket_of = np.array([digest[0] for digest in digests]) * count // 256
            for bucket in np.unique(bucket_of).tolist():
                files[bucket].write(records[bucket_of == bucket].tobytes())
    return paths


def _firsts(bucket: Path) -> np.ndarray:
    records = np.fromfile(bucket, _RECORD)
    halves = records["digest"].copy().view("<u8").reshape(-1, 2)
    order = np.lexsort((records["number"], halves[:, 0], halves[:, 1]))
    ordered = halves[order]
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers: np.ndarray = records["number"][order[first]]
    return numbers
