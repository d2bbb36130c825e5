"""What each rank was given at a step, from a run's ledger, its metrics and its corpora alone.

No model, no GPU and no other step's data: a batch is a function of the settings, of the tokens read
before it and of the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_ngpt.config import (
    Phase,
    config_from,
    fit_micro_batch,
    last_trained,
    phases,
    token_at,
)
from megatron_ngpt.data.corpus import Stage, TokenRange, open_corpora
from megatron_ngpt.data.documents import with_eod
from megatron_ngpt.data.identity import describe
from megatron_ngpt.data.loader import train_reader
from megatron_ngpt.data.stream import stretches
from megatron_ngpt.mesh.degrees import AXES, Degrees
from megatron_ngpt.ops.documents import targets_within
from megatron_ngpt.parallel.zigzag import places
from megatron_ngpt.run.attempts import read_metrics
from megatron_ngpt.run.changes import same
from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.faults import goes_on_at, read_faults
from megatron_ngpt.run.ledger import FILE, Entry, plain, read_ledger


@dataclass(frozen=True)
class StepOfRun:
    """A step and what was in force for it."""

    step: int
    """Counted from 1."""
    entry: Entry
    """The start of the run that did it, or will."""
    phase: Phase
    degrees: Degrees
    first_token: int
    """Tokens of the run that were read before it."""
    done: bool
    """Whether its record is in metrics.jsonl."""

    @property
    def last_token(self) -> int:
        """Tokens that are read after it."""
        return self.first_token + self.phase.step_tokens


class Piece(NamedTuple):
    """Tokens in a row of one document."""

    document: int
    offset: int
    """Of the first of them in the document."""
    first: int
    """Index of the first of them among the sequence's tokens."""
    length: int


@dataclass(frozen=True)
class Given:
    """A sequence of a micro-batch, or the part of it that a rank of a cp group holds."""

    ranks: tuple[int, ...]
    """All that were given it."""
    micro_batch: int
    row: int
    """In the micro-batch."""
    sample: int
    """Its number in the run's stream of samples of this length."""
    corpus: str
    prefix: str
    passed: int
    """How often the corpus had been read when it begins."""
    tokens: np.ndarray
    """int64[T], or [T / cp] of a rank."""
    targets: np.ndarray
    """As many: the token after each; -100 where none is predicted."""
    pieces: tuple[Piece, ...]


def find_step(run_dir: Path, step: int, attempt: int = 0) -> StepOfRun:
    """What was in force for a step.

    Args:
        run_dir: the run's ``logging.dir``.
        step: counted from 1.
        attempt: of steps that were done several times, which start's; 0 means the last.

    Raises:
        ValueError: no start is known that could have done it.
    """
    entries = read_ledger(run_dir)
    entry, before = _in_force(run_dir, entries, step, attempt)
    config = fit_micro_batch(with_eod(config_from(entry.settings)), _degrees(entry).dp)
    if not 1 <= step <= config.train.steps:
        raise ValueError(f"--step {step}: the run has steps 1 to {config.train.steps}")
    tokens = {} if attempt else _recorded(run_dir, step)
    if step in tokens:
        after = tokens[step]
        phase = last_trained(config, after)
        first = after - phase.train.global_batch * phase.data.seq_len
    elif step - 1 in tokens:
        first = goes_on_at(Progress(step - 1, tokens[step - 1]), read_faults(run_dir))
    else:
        first = _tokens_after(step - 1, [*before, entry])
    phase_of_it = phases(config, step - 1, first)[0]
    return StepOfRun(step, entry, phase_of_it, _degrees(entry), first, step in tokens)


def _in_force(
    run_dir: Path, entries: list[Entry], step: int, attempt: int
) -> tuple[Entry, list[Entry]]:
    """The start that did a step last, and those before it."""
    for number, entry in reversed(list(enumerate(entries))):
        if entry.step < step and attempt in (0, entry.attempt):
            return entry, entries[:number]
    which = f"attempt {attempt}" if attempt else "a start"
    raise ValueError(f"--step {step}: {run_dir / FILE} has no line of {which} that could do it")


def _degrees(entry: Entry) -> Degrees:
    sizes = {axis: int(entry.topology[axis]) for axis in AXES}
    return Degrees(**sizes, ulysses=int(entry.settings["parallel.ulysses"] or sizes["cp"]))


def _recorded(run_dir: Path, step: int) -> dict[int, int]:
    """Tokens read after a step and after the one before it, as far as they are recorded."""
    records = read_metrics(run_dir)
    return {int(r["step"]): int(r["tokens"]) for r in records if step - 1 <= r["step"] <= step}


def _tokens_after(step: int, entries: Sequence[Entry]) -> int:
    """Tokens read after a step, of which no record is left: what the starts before it planned.

    Raises:
        ValueError: the run began in another folder.
    """
    if not step:
        return 0
    for number, entry in reversed(list(enumerate(entries))):
        if entry.step < step:
            config = config_from(entry.settings)
            first = _tokens_after(entry.step, entries[:number])
            return token_at(phases(config, entry.step, first), step)
    raise ValueError(
        f"how much was read before step {step + 1} is recorded neither in metrics.jsonl nor in "
        f"{FILE}: the run began in another folder; look at a step that metrics.jsonl has"
    )


def open_as_read(found: StepOfRun) -> tuple[Stage, ...]:
    """The corpora of the run as they were when the step was done.

    Raises:
        FileNotFoundError: one is no longer there.
        ValueError: one is not what it was.
    """
    data = found.phase.config.data
    stages, _ = open_corpora(data)
    for was, now in zip(found.entry.corpora, plain(describe(data, stages)), strict=False):
        for one, other in zip(was["corpora"], now["corpora"], strict=True):
            if was["first_token"] < found.last_token and not same(one, other):
                raise ValueError(
                    f"{other['prefix']} is not what it was when step {found.step} was done "
                    f"({one['identity']['tokens']:,} tokens then): bring that pair back"
                )
    return stages


def sequences(
    found: StepOfRun, stages: Sequence[Stage], rank: int | None = None
) -> Iterator[Given]:
    """All sequences of a step whole, or what one rank was given, in the order of micro-batches.

    Raises:
        ValueError: there is no such rank; a token is not in the vocabulary.
    """
    degrees = found.degrees
    world = degrees.pp * degrees.dp * degrees.cp * degrees.tp
    if rank is not None and not 0 <= rank < world:
        raise ValueError(f"--rank {rank}: step {found.step} was done by ranks 0 to {world - 1}")
    at = {} if rank is None else degrees.coordinates(rank)
    for dp_rank in range(degrees.dp) if rank is None else [at["dp"]]:
        ranks = [n for n in range(world) if degrees.coordinates(n)["dp"] == dp_rank]
        ranks = [rank] if rank is not None else ranks
        yield from _of_replica(found, stages, dp_rank, tuple(ranks), at.get("cp"))


def _of_replica(
    found: StepOfRun,
    stages: Sequence[Stage],
    dp_rank: int,
    ranks: tuple[int, ...],
    cp_index: int | None,
) -> Iterator[Given]:
    config, degrees = found.phase.config, found.degrees
    reader = train_reader(config, stages, dp=degrees.dp, dp_rank=dp_rank)
    length, share = config.data.seq_len, reader.global_batch // degrees.dp
    consumed = found.first_token // length
    batch, _ = reader.read(consumed)
    names = {s.corpus.dataset.prefix: s.name for stage in stages for s in stage.shares}
    mine = np.arange(length)
    if cp_index is not None and degrees.cp > 1:
        mine = places(length, degrees, cp_index).numpy()
    for number, (corpus, start) in enumerate(reader.places(consumed)):
        micro, row = divmod(number, config.train.micro_batch)
        document, offset = located(corpus, start, length)
        prefix = corpus.dataset.prefix
        tokens, targets = batch.tokens[micro, row], batch.targets[micro, row]
        if config.data.document_mask:
            targets = targets_within(tokens, targets, config.data.eod)
        yield Given(
            ranks=ranks,
            micro_batch=micro,
            row=row,
            sample=consumed + dp_rank * share + number,
            corpus=names[prefix],
            prefix=prefix,
            passed=start // corpus.token_count,
            tokens=tokens.numpy()[mine],
            targets=targets.numpy()[mine],
            pieces=tuple(_pieces(document[mine], offset[mine])),
        )


def located(corpus: TokenRange, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Document of each of ``length`` tokens of the endless text, and its place in that document.

    Both int64[length], counted in the whole corpus.
    """
    document, offset = np.empty(length, np.int64), np.empty(length, np.int64)
    for at, first, count in stretches(corpus.token_count, start, length):
        begin, dataset = corpus.start + first, corpus.dataset
        numbers = _documents(corpus, begin, count)
        known, inverse = np.unique(numbers, return_inverse=True)
        starts = np.array([dataset.document_start(number) for number in known.tolist()])
        document[at : at + count] = numbers
        offset[at : at + count] = begin + np.arange(count) - starts[inverse]
    return document, offset


def _documents(corpus: TokenRange, begin: int, count: int) -> np.ndarray:
    dataset, low, high = corpus.dataset, 0, corpus.dataset.document_count
    while high - low > 1:  # the last document that starts at or before ``begin``
        middle = (low + high) // 2
        low, high = (middle, high) if dataset.document_start(middle) <= begin else (low, middle)
    ends = dataset.document_ends(begin, begin + count)
    return low + np.searchsorted(ends, np.arange(count))


def _pieces(document: np.ndarray, offset: np.ndarray) -> Iterator[Piece]:
    """Runs of tokens that follow each other in one document."""
    breaks = np.flatnonzero((np.diff(document) != 0) | (np.diff(offset) != 1)) + 1
    for first, end in pairwise([0, *breaks.tolist(), len(document)]):
        yield Piece(int(document[first]), int(offset[first]), first, end - first)
