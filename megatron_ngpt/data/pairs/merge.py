"""Several pairs to one."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.pairs.blocks import widest
from megatron_ngpt.data.pairs.manifest import write_manifest
from megatron_ngpt.data.pairs.origin import open_pairs, origin_of, special_texts


def merge(prefixes: Sequence[str], output: str) -> IndexedWriter:
    """Write the documents of all pairs, in order, as one pair; each byte is copied once.

    Returns:
        The writer, for its counts.

    Raises:
        FileNotFoundError, ValueError: see ``open_pairs``.
    """
    datasets = open_pairs(prefixes, [output])
    size = sum(dataset.token_count * dataset.dtype.itemsize for dataset in datasets)
    with (
        IndexedWriter(output, widest(datasets), checksum=True) as writer,
        tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for dataset in datasets:
            writer.add_dataset(dataset, bar.update)
    origin = origin_of("merge_datasets", datasets, {})
    write_manifest(writer, {**origin, "special_texts": special_texts(datasets), "removed": {}})
    return writer
