"""Corpora that are open, each once, whatever the names it is given."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from megatron_ngpt.config import CorpusConfig
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.remote import is_url, local_copy

Dataset = IndexedDataset | FlatDataset
_LOOKS = 64
_LOOK = 512


class KnownCorpora:
    """Opens corpora and knows them again: by links, by other paths, and as copies.

    Args:
        cache_dir: folder for copies of corpora behind URLs.
    """

    def __init__(self, cache_dir: str = "") -> None:
        self._cache_dir = cache_dir
        self._alike: dict[tuple[int, bytes], list[Dataset]] = {}
        """By size and beginning, so that a thousand corpora are not compared with each other."""

    def blend(self, setting: str, corpora: Sequence[CorpusConfig]) -> list[Dataset]:
        """The corpora of a blend.

        Raises:
            FileNotFoundError, ValueError: see ``open_corpus``; also when two are the same one.
        """
        names: dict[str, str] = {}
        found = []
        for corpus in corpora:
            dataset = self.open(setting, corpus.prefix)
            if dataset.prefix in names:
                raise ValueError(
                    f"{setting}: {corpus.prefix} is {names[dataset.prefix]} by another name, or a "
                    "copy of it: every token would be read twice; name it once, with the sum of "
                    "the weights"
                )
            names[dataset.prefix] = corpus.prefix
            found.append(dataset)
        return found

    def open(self, setting: str, prefix: str) -> Dataset:
        """The corpus of a name; the one that is open already, if it is that."""
        dataset = open_corpus(setting, prefix, self._cache_dir)
        head = dataset.tokens(0, min(_LOOK, dataset.token_count)).astype(np.int64).tobytes()
        alike = self._alike.setdefault((dataset.token_count, head), [])
        for other in alike:
            if same_tokens(dataset, other):
                return other
        alike.append(dataset)
        return dataset


def same_tokens(a: Dataset, b: Dataset) -> bool:
    """Whether two corpora hold the same tokens: one file, or as many tokens that are equal wherever
    one looks, which is everywhere up to 32,768 tokens and at 64 places beyond."""
    if os.path.samefile(a.files[0], b.files[0]):
        return True
    size = a.token_count
    if size != b.token_count:
        return False
    starts = np.linspace(0, max(0, size - _LOOK), _LOOKS).astype(int).tolist()
    pieces = [(at, min(size, at + _LOOK)) for at in starts]
    return all(np.array_equal(a.tokens(*piece), b.tokens(*piece)) for piece in pieces)


def other_name(dataset: Dataset, prefix: str) -> str:
    """What to call a corpus in a sentence about a name of it."""
    same = os.path.normpath(dataset.prefix) == os.path.normpath(prefix)
    return "the corpus" if same else f"{dataset.prefix} by another name, or a copy of it"


def way_to_make(setting: str) -> str:
    """How to get what a setting wants."""
    return (
        "make a pair with: python tools/preprocess_data.py --input FILE --tokenizer-model MODEL "
        f"--output-prefix NAME, then set {setting} to NAME_text_document"
    )


def open_corpus(setting: str, prefix: str, cache_dir: str = "") -> Dataset:
    """A pair or a flat file, by its prefix or URL.

    Raises:
        FileNotFoundError: a file is missing, naming the setting.
        ValueError: it is corrupt or empty.
    """
    make = way_to_make(setting)
    dataset: Dataset
    try:
        if is_url(prefix):
            prefix = local_copy(prefix, cache_dir)
        dataset = FlatDataset(prefix) if prefix.endswith(".bin") else IndexedDataset(prefix)
    except FileNotFoundError as err:
        raise FileNotFoundError(f"{setting} = {prefix}: {err}; {make}") from err
    except ValueError as err:
        raise ValueError(f"{setting} = {prefix}: {err}") from err
    if not dataset.token_count:
        raise ValueError(f"{setting} = {prefix} holds no tokens; {make}")
    return dataset
