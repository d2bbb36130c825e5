"""Batches of one data-parallel rank, read ahead by a thread; all state is one integer and what is
left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_ngpt.config import IGNORED, Config, Phase, phases, step_at
from megatron_ngpt.data.blend import BlendStream
from megatron_ngpt.data.corpus import Share, Stage
from megatron_ngpt.data.left_out import Ranges, in_samples, remaining
from megatron_ngpt.data.stream import Place, SampleStream, document_ends, read_rows

# Not train.seed: runs that differ in their seed are compared on the same text.
EVAL_SEED = 0


class Batch(NamedTuple):
    """One rank's share of a step, cut into micro-batches."""

    tokens: Tensor
    """int64[accumulation, micro_batch, T]: inputs."""

    targets: Tensor
    """int64[accumulation, micro_batch, T]: the token after each input; where documents are kept
    apart, ``IGNORED`` after the last of one."""


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Reads any step's batch for one rank: a pure function of the samples consumed before it.

    A step consumes the next global_batch samples of the stream that are not left out. Rank r takes
    the r-th of dp equal runs of them, in order, and cuts it into micro-batches.
    """

    stream: BlendStream | SampleStream
    global_batch: int
    micro_batch: int
    dp: int
    dp_rank: int
    vocab_size: int
    setting: str = "data.train"
    """The setting that named the corpus, for messages."""
    documents: bool = False
    """Whether documents are kept apart."""
    pin: bool = False
    """Whether to return pinned memory, for copies to a GPU that do not block."""
    left_out: Ranges = ()
    """Samples that no step gets."""

    def __post_init__(self) -> None:
        assert self.global_batch % (self.micro_batch * self.dp) == 0, self
        assert 0 <= self.dp_rank < self.dp, self

    def read(self, consumed: int) -> tuple[Batch, int]:
        """The batch of the step after ``consumed`` samples, and the samples consumed after it.

        Raises:
            ValueError: when a token id is not below vocab_size.
        """
        places = self.places(consumed)
        rows = read_rows(places, self.stream.seq_len + 1)
        self._check_ids(places, rows)
        tokens, targets = rows[:, :-1], rows[:, 1:]
        if self.documents:
            targets = np.where(document_ends(places, self.stream.seq_len), IGNORED, targets)
        return Batch(self._tensor(tokens), self._tensor(targets)), self.after(consumed)

    def numbers(self, consumed: int) -> np.ndarray:
        """The samples of that batch on all ranks, int64[global_batch]."""
        return remaining(consumed, self.global_batch, self.left_out)

    def after(self, consumed: int) -> int:
        """Samples consumed after that batch."""
        return int(self.numbers(consumed)[-1]) + 1

    def places(self, consumed: int) -> list[Place]:
        """Where the samples of that batch begin, in order."""
        share = self.global_batch // self.dp
        return self.stream.places(self.numbers(consumed)[self.dp_rank * share :][:share])

    def _tensor(self, rows: np.ndarray) -> Tensor:
        # Made contiguous by numpy: torch would start a second pool of threads in the loader's.
        whole = np.ascontiguousarray(rows).reshape(-1, self.micro_batch, rows.shape[1])
        tensor = torch.from_numpy(whole)
        return tensor.pin_memory() if self.pin else tensor

    def _check_ids(self, places: Sequence[Place], rows: np.ndarray) -> None:
        # Read as unsigned, a negative id is huge, so one pass finds both kinds of mistake.
        if rows.view(np.uint64).max() < self.vocab_size:
            return
        row, column = np.argwhere(rows.view(np.uint64) >= self.vocab_size)[0].tolist()
        corpus = places[row].corpus
        raise ValueError(
            f"{self.setting} = {corpus.dataset.prefix} holds token id {rows[row, column]}, but "
            f"model.vocab_size = {self.vocab_size} allows ids from 0 to {self.vocab_size - 1}: "
            "set model.vocab_size to that of the tokenizer that made the corpus, or preprocess "
            "the text with the tokenizer of this model"
        )


class Loader:
    """Endless iterator of (batch, samples consumed after it), usable as a context manager.

    With prefetch, one thread reads that many batches ahead. An error of its reading is raised by
    the ``next`` that would have returned the batch. Reading ahead leaves no trace: what a
    checkpoint saves is the integer that came with the last batch used.

    Args:
        reader: reads one batch.
        consumed: samples consumed so far, as saved in a checkpoint.
        prefetch: batches read ahead; 0 reads in the caller's thread.
    """

    def __init__(self, reader: BatchReader, consumed: int = 0, prefetch: int = 0) -> None:
        self._reader = reader
        self._consumed = self._next = consumed
        self._prefetch = prefetch
        self._ahead: deque[Future[tuple[Batch, int]]] = deque()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data-loader")
        self._read_ahead()

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        return self

    def __next__(self) -> tuple[Batch, int]:
        if not self._prefetch:
            batch, self._consumed = self._reader.read(self._consumed)
            return batch, self._consumed
        # Taken off the queue only when it is good: asking again after an error skips no batch.
        batch, self._consumed = self._ahead[0].result()
        self._ahead.popleft()
        self._read_ahead()
        return batch, self._consumed

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def numbers(self, consumed: int) -> np.ndarray:
        """See :meth:`BatchReader.numbers`."""
        return self._reader.numbers(consumed)

    def close(self) -> None:
        """End the thread after the batch it is reading; a loader left open ends with Python."""
        self._pool.shutdown(cancel_futures=True)

    def _read_ahead(self) -> None:
        while len(self._ahead) < self._prefetch:
            self._ahead.append(self._pool.submit(self._reader.read, self._next))
            self._next = self._reader.after(self._next)


def train_loader(
    config: Config,
    stages: Sequence[Stage],
    *,
    dp: int,
    dp_rank: int,
    consumed: int,
    plan: Sequence[Phase] = (),
    pin: bool = False,
    left_out: Ranges = (),
) -> Loader:
    """The training batches of one rank, from ``consumed`` samples on.

    Args:
        config: of the phase in which the run is.
        stages: which corpora follow one another.
        dp: ranks that share a batch.
        dp_rank: which of them this is.
        consumed: samples of data.seq_len that were read before.
        plan: this phase and those to come; one without changes from the first step on if empty.
        pin: see :class:`BatchReader`.
        left_out: tokens of the stream that no step gets.

    Raises:
        ValueError: a corpus reaches its limit of epochs before train.steps.
    """
    data = config.data
    stream = BlendStream(stages, data.seq_len, config.train.seed, data.shuffle_unit)
    plan = plan or phases(config, 0, consumed * data.seq_len)
    end = stream.first_beyond_epochs()
    if end is not None and end.number * data.seq_len < plan[-1].last_token:
        steps = step_at(plan, max(plan[0].first_token, end.number * data.seq_len))
        raise ValueError(
            f"{end}, after step {steps}, and train.steps = {config.train.steps}: raise its epochs "
            "or set them to 0, lower its weight, or shorten the run"
        )
    reader = _reader(config, stream, "data.train", dp=dp, dp_rank=dp_rank, pin=pin)
    reader = replace(reader, left_out=in_samples(left_out, data.seq_len))
    return Loader(reader, consumed, data.prefetch)


def train_reader(config: Config, stages: Sequence[Stage], *, dp: int, dp_rank: int) -> BatchReader:
    """What reads the training batches of one rank, for those who look at any step."""
    data = config.data
    stream = BlendStream(stages, data.seq_len, config.train.seed, data.shuffle_unit)
    return _reader(config, stream, "data.train", dp=dp, dp_rank=dp_rank, pin=False)


def eval_batches(
    config: Config, share: Share, *, dp: int, dp_rank: int, pin: bool = False
) -> Iterator[Batch]:
    """One rank's part of the eval.steps global batches that every evaluation of a corpus uses.

    Together the ranks read the same samples for any dp, micro-batch size and train.seed. A
    validation corpus too short for them is read again from its start.
    """
    stream = SampleStream(share.corpus, config.data.seq_len, EVAL_SEED)
    setting = "data.valid" if config.data.valid else "data.train"
    reader = _reader(config, stream, setting, dp=dp, dp_rank=dp_rank, pin=pin)
    for step in range(config.eval.steps):
        yield reader.read(step * reader.global_batch)[0]


def _reader(
    config: Config,
    stream: BlendStream | SampleStream,
    setting: str,
    *,
    dp: int,
    dp_rank: int,
    pin: bool,
) -> BatchReader:
    return BatchReader(
        stream=stream,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        dp=dp,
        dp_rank=dp_rank,
        vocab_size=config.model.vocab_size,
        documents=config.data.document_mask,
        setting=setting,
        pin=pin,
    )
