"""The order of the training samples, as a pure function of (corpus, seq_len, seed, number)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_ngpt.data.corpus import TokenRange
from megatron_ngpt.data.permutation import Permutation


class Place(NamedTuple):
    """Where a sample begins."""

    corpus: TokenRange
    start: int
    """In tokens of the corpus' endless text."""


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
        return read_rows(self.places(numbers), self.seq_len + 1)

    def places(self, numbers: np.ndarray) -> list[Place]:
        """Where samples begin, by number."""
        return [Place(self.corpus, start) for start in self.starts(numbers).tolist()]

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


def read_rows(places: Sequence[Place], length: int) -> np.ndarray:
    """``length`` tokens from each place on: int64[places, length]."""
    rows = np.empty((len(places), length), np.int64)
    for row, place in zip(rows, places, strict=True):
        read_endless(*place, row)
    return rows


def document_ends(places: Sequence[Place], length: int) -> np.ndarray:
    """Which of ``length`` tokens from each place on end a document: bool[places, length]."""
    rows = np.zeros((len(places), length), bool)
    for row, (corpus, start) in zip(rows, places, strict=True):
        for at, first, count in stretches(corpus.token_count, start, length):
            row[at + corpus.document_ends(first, first + count)] = True
    return rows


def read_endless(corpus: TokenRange, start: int, out: np.ndarray) -> None:
    """Fill out from the endless text, which may pass the corpus's end any number of times."""
    for at, first, count in stretches(corpus.token_count, start, len(out)):
        out[at : at + count] = corpus.tokens(first, first + count)


def stretches(size: int, start: int, length: int) -> Iterator[tuple[int, int, int]]:
    """A piece of the endless text of ``size`` tokens: place in it, first token and count of each
    stretch that lies within one pass."""
    done = 0
    while done < length:
        first = (start + done) % size
        count = min(size - first, length - done)
        yield done, first, count
        done += count
