"""The samples of a blend of corpora, and of blends that follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ngpt.data.allocation import Allocation
from megatron_ngpt.data.corpus import Share, Stage
from megatron_ngpt.data.stream import Place, SampleStream, read_rows, starts_of

_UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class _Part:
    """One stage: units [first, end) of the run."""

    first: int
    end: int | None
    shares: tuple[Share, ...]
    allocation: Allocation
    sizes: np.ndarray
    """int64[corpora]: tokens of each corpus."""
    read: np.ndarray
    """int64[corpora]: units of each corpus that earlier stages have read."""
    limits: np.ndarray
    """int64[corpora]: units of each corpus that may be read in all."""

    def number_beyond(self, corpus: int) -> int:
        """Number of the first unit here that is over a corpus' limit."""
        ordinal = max(0, int(self.limits[corpus] - self.read[corpus]))
        return self.first + self.allocation.number(corpus, ordinal)


@dataclass(frozen=True)
class EndOfEpochs:
    """The first sample of a run that a limit of epochs forbids."""

    number: int
    share: Share

    def __str__(self) -> str:
        return (
            f"corpus {self.share.name} ({self.share.corpus.dataset.prefix}) has been read "
            f"epochs = {self.share.epochs} times when sample {self.number} wants more of it"
        )


class BlendStream:
    """Endless samples of blended corpora, addressed by number like those of a ``SampleStream``.

    Corpora are shuffled and dealt out in units of U tokens, a multiple of T; sample n is tokens
    [n T, (n + 1) T) of the units laid end to end. So streams of one U and any T are the same
    tokens in the same order. With U = T, the default, every sample is a unit.

    Every corpus keeps its own stream and its own count of units; an ``Allocation`` says whose
    turn it is. A stage begins with the first unit that starts at or after its token, and goes on
    in each corpus where the stages before it have left it, so the streams lose and repeat nothing.

    Args:
        stages: at least one, the first at token 0.
        seq_len: T, inputs per sample.
        seed: chooses the order within each corpus.
        unit: U; 0 means T.

    Raises:
        ValueError: a weight is too small beside the others.
    """

    def __init__(self, stages: Sequence[Stage], seq_len: int, seed: int, unit: int = 0) -> None:
        self.seq_len, self._seed, self._unit = seq_len, seed, unit or seq_len
        assert self._unit % seq_len == 0, (unit, seq_len)
        firsts = [-(-stage.first_token // self._unit) for stage in stages]
        assert firsts[0] == 0, firsts
        read: dict[str, int] = {}
        self._firsts = np.array(firsts)
        self._parts = []
        for first, end, stage in zip(firsts, [*firsts[1:], None], stages, strict=True):
            part = _part(first, end, stage.shares, read, self._unit)
            self._parts.append(part)
            if end is not None:
                counts = part.read + part.allocation.counts(end - first)
                read |= zip(map(_key, part.shares), counts.tolist(), strict=True)

    def batch(self, numbers: np.ndarray) -> np.ndarray:
        """Samples by number: int64[B] to int64[B, T + 1]; ``[:, 1:]`` are the targets.

        Raises:
            ValueError: a corpus has reached its limit of epochs.
        """
        return read_rows(self.places(numbers), self.seq_len + 1)

    def places(self, numbers: np.ndarray) -> list[Place]:
        """Where samples begin, by number.

        Raises:
            ValueError: a corpus has reached its limit of epochs.
        """
        found: dict[int, Place] = {}
        units, offsets = np.divmod(numbers * self.seq_len, self._unit)
        of_part = np.searchsorted(self._firsts, units, side="right") - 1
        for index in np.unique(of_part).tolist():
            part, mine = self._parts[index], np.flatnonzero(of_part == index)
            corpora, ordinals = part.allocation(units[mine] - part.first)
            ordinals += part.read[corpora]
            over = ordinals >= part.limits[corpora]
            if over.any():
                corpus = int(corpora[over.argmax()])
                end = self._end(part, corpus)
                raise ValueError(f"{end}: raise its epochs or set them to 0")
            starts = (
                starts_of(ordinals, part.sizes[corpora], self._unit, self._seed) + offsets[mine]
            )
            for row, corpus, start in zip(
                *map(np.ndarray.tolist, (mine, corpora, starts)), strict=True
            ):
                found[row] = Place(part.shares[corpus].corpus, start)
        return [found[row] for row in range(len(numbers))]

    def first_beyond_epochs(self) -> EndOfEpochs | None:
        """Where the first corpus reaches its limit of epochs, if any does."""
        for part in self._parts:
            limited = [corpus for corpus, share in enumerate(part.shares) if share.epochs]
            first = min(limited, key=part.number_beyond, default=None)
            if first is not None and (part.end is None or part.number_beyond(first) < part.end):
                return self._end(part, first)
        return None

    def _end(self, part: _Part, corpus: int) -> EndOfEpochs:
        number = part.number_beyond(corpus) * (self._unit // self.seq_len)
        return EndOfEpochs(number, part.shares[corpus])


def _part(
    first: int,
    end: int | None,
    shares: tuple[Share, ...],
    read: dict[str, int],
    unit: int,
) -> _Part:
    try:
        allocation = Allocation([share.weight for share in shares])
    except ValueError as err:
        raise ValueError(f"{shares[0].name} and the corpora beside it: {err}") from err
    limits = [
        SampleStream(share.corpus, unit, 0).first(share.epochs) if share.epochs else _UNLIMITED
        for share in shares
    ]
    before = [read.get(share.corpus.dataset.prefix, 0) for share in shares]
    sizes = [share.corpus.token_count for share in shares]
    arrays = (np.array(values, np.int64) for values in (sizes, before, limits))
    return _Part(first, end, shares, allocation, *arrays)


def _key(share: Share) -> str:
    return share.corpus.dataset.prefix
