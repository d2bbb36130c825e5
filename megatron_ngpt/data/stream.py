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
            read_endless(self.corpus, start, row)
        return rows

    def corpus_of(self, number: int) -> TokenRange:
        """The corpus of a sample."""
        return self.corpus

    def starts(self, numbers: np.ndarray) -> np.ndarray:
        """Where samples begin in the endless text: int64[B] to int64[B], in tokens."""
        sizes = np.full(len(numbers), self.corpus.token_count)
        return starts_of(numbers, sizes, self.seq_len, self.seed)

    def first(self, epoch: int) -> int:
        """Number of the first sample that starts in an epoch: ceil(epoch * N / T)."""
        return -(-epoch * self.corpus.token_count // self.seq_len)


def starts_of(numbers: np.ndarray, sizes: np.ndarray, seq_len: int, seed: int) -> np.ndarray:
    """Where samples of several corpora begin in the endless text of each.

    Args:
        numbers: int64[B], each sample's number in the stream of its corpus.
        sizes: int64[B], tokens of its corpus.
        seq_len: T, inputs per sample.
        seed: chooses the order.

    Returns:
        int64[B], in tokens.
    """
    epochs = numbers * seq_len // sizes
    firsts, ends = (-(-epoch * sizes // seq_len) for epoch in (epochs, epochs + 1))
    order = Permutation(ends - firsts, [(seed, epoch) for epoch in epochs.tolist()])
    starts: np.ndarray = (firsts + order(numbers - firsts)) * seq_len
    return starts


def read_endless(corpus: TokenRange, start: int, out: np.ndarray) -> None:
    """Fill out from the endless text, which may pass the corpus's end any number of times."""
    size = corpus.token_count
    done = 0
    while done < len(out):
        at = (start + done) % size
        count = min(size - at, len(out) - done)
        out[done : done + count] = corpus.tokens(at, at + count)
        done += count
