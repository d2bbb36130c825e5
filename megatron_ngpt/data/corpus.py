"""The token ranges a run trains and validates on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.config import DataConfig, blends_of, corpora_of
from megatron_ngpt.data.known import Dataset, KnownCorpora, other_name, way_to_make


@dataclass(frozen=True)
class TokenRange:
    """Tokens [start, stop) of an indexed dataset: a corpus, or the part of one held back."""

    dataset: Dataset
    start: int
    stop: int

    @property
    def token_count(self) -> int:
        """N, number of tokens in the range."""
        return self.stop - self.start

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) counted from the beginning of the range: a read-only view."""
        assert 0 <= start <= stop <= self.token_count, (start, stop, self.token_count)
        return self.dataset.tokens(self.start + start, self.start + stop)

    def document_ends(self, start: int, stop: int) -> np.ndarray:
        """Which of the tokens [start, stop) end a document: i64[ends], counted from start."""
        return self.dataset.document_ends(self.start + start, self.start + stop)


@dataclass(frozen=True)
class Share:
    """A corpus and its part in a blend."""

    corpus: TokenRange
    name: str
    """What metrics and messages call it."""
    weight: float = 1.0
    """Relative to the weights beside it."""
    epochs: int = 0
    """Passes it may be read; 0 means any number."""


@dataclass(frozen=True)
class Stage:
    """The blend that is read from a number of tokens on."""

    first_token: int
    shares: tuple[Share, ...]


def open_corpora(data: DataConfig) -> tuple[tuple[Stage, ...], tuple[Share, ...]]:
    """Open what data.train, data.stages and data.valid name; each corpus once, by any name.

    Returns:
        The stages of training, and what to validate on. Without data.valid the last
        data.valid_fraction of every training corpus' documents are held back, and its weight is
        that of the first blend it is in; there is nothing to validate on when that is 0 too.

    Raises:
        FileNotFoundError: when a pair is missing, naming the setting.
        ValueError: when a pair is corrupt or empty, or too small to split, naming the setting; when
            a blend reads a corpus twice, or validation reads what is trained on.
    """
    if not corpora_of(data.train):
        raise ValueError(f"data.train is empty: {way_to_make('data.train')}")
    known = KnownCorpora(data.cache_dir)
    parts: dict[str, tuple[TokenRange, TokenRange | None]] = {}
    held_back: dict[str, Share] = {}
    stages = []
    starts = [0, *(stage.tokens for stage in data.stages if stage.train)]
    for first, (setting, corpora) in zip(starts, blends_of(data).items(), strict=True):
        shares, total = [], sum(corpus.weight for corpus in corpora)
        for corpus, dataset in zip(corpora, known.blend(setting, corpora), strict=True):
            key = dataset.prefix
            if key not in parts:
                parts[key] = _parts(dataset, data)
            train, valid = parts[key]
            shares.append(Share(train, corpus.name, corpus.weight, corpus.epochs))
            if valid and key not in held_back:
                held_back[key] = Share(valid, corpus.name, corpus.weight / total)
        stages.append(Stage(first, tuple(shares)))
    own = []
    apart = corpora_of(data.valid)
    for corpus, dataset in zip(apart, known.blend("data.valid", apart), strict=True):
        if dataset.prefix in parts:
            raise ValueError(
                f"data.valid = {corpus.prefix} is {other_name(dataset, corpus.prefix)}, which is "
                "trained on: name another pair, or leave data.valid out and let "
                "data.valid_fraction hold documents back"
            )
        own.append(Share(_whole(dataset), corpus.name, corpus.weight))
    return tuple(stages), tuple(own) or tuple(held_back.values())


def split_corpus(dataset: Dataset, valid_fraction: float) -> tuple[TokenRange, TokenRange]:
    """Cut a corpus at a document boundary; its last documents are for validation.

    Args:
        dataset: the corpus.
        valid_fraction: share of the documents held back, in (0, 1); at least one document is.

    Returns:
        Training and validation range, which share no document and miss none.

    Raises:
        ValueError: when either side would have no tokens.
    """
    documents = dataset.document_count
    held_back = max(1, round(valid_fraction * documents))
    cut = dataset.document_start(max(0, documents - held_back))
    if not 0 < cut < dataset.token_count:
        raise ValueError(
            f"data.valid_fraction = {valid_fraction} holds back {held_back} of the {documents} "
            f"documents of {dataset.prefix}, which leaves {cut} tokens to train on and "
            f"{dataset.token_count - cut} to validate on: set data.valid to the prefix of a pair "
            "of its own, or data.valid_fraction to 0 for no validation"
        )
    return TokenRange(dataset, 0, cut), TokenRange(dataset, cut, dataset.token_count)


def _whole(dataset: Dataset) -> TokenRange:
    return TokenRange(dataset, 0, dataset.token_count)


def _parts(dataset: Dataset, data: DataConfig) -> tuple[TokenRange, TokenRange | None]:
    """What is trained on and what is held back."""
    if data.valid or data.valid_fraction == 0:
        return _whole(dataset), None
    return split_corpus(dataset, data.valid_fraction)
