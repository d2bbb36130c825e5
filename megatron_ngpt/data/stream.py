"""The order of the training samples, as a pure function of (corpus, seq_len, seed, number)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.data.corpus import TokenRange
from megatron_ngpt.data.permutation import Permutation


@dataclass(frozen=True)
class SampleStream:
    """Endless samples of a corpus, addressed by number; nothing is stored and nothing advances.

    Passes over the corpus (N tokens) are laid end to end and cut every T tokens. The cut pieces
    that start within one pass are an epoch; a permutation keyed by (seed, epoch) shuffles them
    among themselves. Sample n belongs to epoch e = n * T // N, whose first sample is
    first(e) = ceil(e * N / T), and starts at token (first(e) + permutation(n - first(e))) * T of
    the endless text. Every token is therefore an input exactly once per pass, the tail that does
    not fill a piece included: it is completed from the next pass.

    Attributes:
        corpus: the tokens, at least one.
        seq_len: T, inputs per sample.
        seed: chooses the order.

    Positions are int64: a run may go on for 2**63 tokens.
    """

    corpus: TokenRange
    seq_len: int
    seed: int

    def sample(self, number: int) -> np.ndarray:
        """Sample ``number``: int64[T + 1], T inputs and the token after the last of them."""
        return self.batch(np.array([number]))[0]

    def batch(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number: int64[B] to int64[B, T + 1]; ``[:, 1:]`` are the targets."""
        rows = np.empty((len(numbers), self.seq_len + 1), np.int64)
        for row, start in zip(rows, self.starts(numbers).tolist(), strict=True):
            self._read(start, row)
        return rows

    def corpus_of(self, number: int) -> TokenRange:
        """The corpus of a sample."""
        return self.corpus

    def starts(self, numbers: np.ndarray) -> np.ndarray:
        """Where samples begin in the endless text: int64[B] to int64[B], in tokens."""
        epochs = numbers * self.seq_len // self.corpus.token_count
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            first, end = self.first(epoch), self.first(epoch + 1)
            order = Permutation(end - first, key=(self.seed, epoch))
            starts[rows] = (first + order(numbers[rows] - first)) * self.seq_len
        return starts

    def first(self, epoch: int) -> int:
        """Number of the first sample that starts in an epoch: ceil(epoch * N / T)."""
        return -(-epoch * self.corpus.token_count // self.seq_len)

    def _read(self, start: int, out: np.ndarray) -> None:
        """Fill out from the endless text, which may pass the corpus's end any number of times."""
        size = self.corpus.token_count
        done = 0
        while done < len(out):
            at = (start + done) % size
            count = min(size - at, len(out) - done)
            out[done : done + count] = self.corpus.tokens(at, at + count)
            done += count
