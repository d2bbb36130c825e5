"""What is in a pair: counts and lengths, as text and as a picture. Sole home of matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.pairs.blocks import blocks
from megatron_ngpt.extras import require

_BAR = 40
_POWERS = 64


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a pair are; bin b holds 2**(b - 1) to 2**b - 1 tokens."""

    documents: np.ndarray
    """i64[bins], number of documents; bin 0 holds those without tokens."""
    tokens: np.ndarray
    """i64[bins], tokens in them."""
    shortest: int
    longest: int

    def table(self) -> str:
        """A line for each bin from the first to the last that is not empty."""
        filled = np.flatnonzero(self.documents)
        lines = [f"{'tokens':>23}  {'documents':>12}  {'of all tokens':>13}"]
        for b in range(filled[0], filled[-1] + 1) if len(filled) else ():
            name = f"{1 << b >> 1:,} to {(1 << b) - 1:,}" if b > 1 else f"{b}"
            share = self.tokens[b] / max(1, self.tokens.sum())
            bar = "#" * round(_BAR * self.documents[b] / self.documents.max())
            lines.append(f"{name:>23}  {self.documents[b]:>12,}  {share:>12.1%}  {bar}".rstrip())
        return "\n".join(lines)

    def draw(self, path: str | Path, title: str) -> None:
        """Write the same as a PNG.

        Raises:
            ModuleNotFoundError: when matplotlib is not installed.
        """
        figure = require("matplotlib.figure", "plot", "drawing").Figure(figsize=(8, 4))
        bins = range(len(self.documents))
        axes = figure.subplots()
        axes.bar(bins, self.documents, color="#9ab")
        axes.set(title=title, ylabel="documents", xlabel="tokens of a document, up to")
        axes.set_xticks(bins, [f"{(1 << b) - 1:,}" for b in bins], rotation=60, ha="right")
        figure.savefig(path, dpi=120, bbox_inches="tight")


def lengths_of(dataset: IndexedDataset) -> Lengths:
    """Count the documents of a pair by length; reads the index, not the tokens."""
    documents, tokens = np.zeros(_POWERS, np.int64), np.zeros(_POWERS, np.int64)
    shortest, longest = dataset.token_count, 0
    for block in blocks([dataset]):
        sizes = block.sizes
        bins = np.frexp(sizes.astype(float))[1]
        documents += np.bincount(bins, minlength=_POWERS)
        tokens += np.bincount(bins, sizes, _POWERS).astype(np.int64)
        shortest, longest = min(shortest, int(sizes.min())), max(longest, int(sizes.max()))
    last = int(np.flatnonzero(documents)[-1]) + 1 if documents.any() else 1
    return Lengths(documents[:last], tokens[:last], shortest, longest)
