"""The token ranges a run trains and validates on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.config import DataConfig
from megatron_ngpt.data.indexed import IndexedDataset


@dataclass(frozen=True)
class TokenRange:
    """Tokens [start, stop) of an indexed dataset: a corpus, or the part of one held back."""

    dataset: IndexedDataset
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


def open_corpora(data: DataConfig) -> tuple[TokenRange, TokenRange | None]:
    """Open what data.train and data.valid name.

    Returns:
        The training and the validation range. Without data.valid the last
        data.valid_fraction of the training documents are held back; the validation range is None
        when that is 0 too.

    Raises:
        FileNotFoundError: when a pair is missing, naming the setting.
        ValueError: when a pair is corrupt or empty, or too small to split, naming the setting.
    """
    train = _open("data.train", data.train)
    if data.valid:
        valid = _open("data.valid", data.valid)
        return _whole(train), _whole(valid)
    if data.valid_fraction == 0:
        return _whole(train), None
    return split_corpus(train, data.valid_fraction)


def split_corpus(dataset: IndexedDataset, valid_fraction: float) -> tuple[TokenRange, TokenRange]:
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


def _whole(dataset: IndexedDataset) -> TokenRange:
    return TokenRange(dataset, 0, dataset.token_count)


def _open(setting: str, prefix: str) -> IndexedDataset:
    make = (
        "make a pair with: python tools/preprocess_data.py --input FILE --tokenizer-model MODEL "
        f"--output-prefix NAME, then set {setting} to NAME_text_document"
    )
    if not prefix:
        raise ValueError(f"{setting} is empty: {make}")
    try:
        dataset = IndexedDataset(prefix)
    except FileNotFoundError as err:
        raise FileNotFoundError(f"{setting} = {prefix}: {err}; {make}") from err
    except ValueError as err:
        raise ValueError(f"{setting} = {prefix}: {err}") from err
    if not dataset.token_count:
        raise ValueError(f"{setting} = {prefix} holds no tokens; {make}")
    return dataset
