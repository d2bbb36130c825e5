"""One pair to several, by the content of each document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.pairs.blocks import blocks
from megatron_ngpt.data.pairs.manifest import write_manifest
from megatron_ngpt.data.pairs.origin import open_pairs, origin_of


def split(prefix: str, output: str, shares: Mapping[str, float]) -> dict[str, IndexedWriter]:
    """Deal the documents of a pair to the pairs ``OUTPUT_<name>``.

    Where a document goes depends on its tokens and the shares alone: it stays there when the
    corpus grows, and equal documents are never on two sides.

    Args:
        prefix: of the pair.
        output: beginning of the names of the new ones.
        shares: of each name, above 0; their sum is 1.

    Returns:
        The writers, for their counts.

    Raises:
        FileNotFoundError, ValueError: see ``open_pairs``; also for shares that cannot be, and
            when no document falls to a name.
    """
    _check(shares)
    outputs = {name: f"{output}_{name}" for name in shares}
    datasets = open_pairs([prefix], list(outputs.values()))
    bounds = np.cumsum([float(share) for share in shares.values()])[:-1]
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(IndexedWriter(path, datasets[0].dtype, checksum=True))
            for name, path in outputs.items()
        }
        for block in blocks(datasets, "split"):
            points = [int.from_bytes(digest[:8], "big") / 2**64 for digest in block.digests()]
            sides = np.searchsorted(bounds, points, side="right")
            for side, writer in enumerate(writers.values()):
                block.select(sides == side).write(writer)
        for name, writer in writers.items():
            if not writer.document_count:
                raise ValueError(
                    f"no document of {datasets[0].document_count} falls to {name}: raise its share"
                )
    total = datasets[0].document_count
    for name, writer in writers.items():
        origin = origin_of("split_dataset", datasets, {"name": name, "shares": dict(shares)})
        elsewhere = {"to another name": total - writer.document_count}
        write_manifest(writer, {**origin, "removed": elsewhere})
    return writers


def _check(shares: Mapping[str, float]) -> None:
    if any(share <= 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1):
        text = " ".join(f"{name}={share}" for name, share in shares.items())
        raise ValueError(f"--split {text}: shares must be above 0 and add up to 1")
