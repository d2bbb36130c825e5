"""Small corpora for the tests of the data room."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from megatron_ngpt.data.corpus import TokenRange
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory) -> Callable[..., IndexedDataset]:
    """Write and open a pair with documents of the given lengths; token i is i by default."""

    def make(lengths: Sequence[int], tokens=None, dtype="int32") -> IndexedDataset:
        prefix = tmp_path_factory.mktemp("corpus") / "corpus_text_document"
        with IndexedWriter(prefix, dtype) as writer:
            writer.add_documents(np.arange(sum(lengths)) if tokens is None else tokens, lengths)
        return IndexedDataset(prefix)

    return make


@pytest.fixture(scope="session")
def make_corpus(make_dataset) -> Callable[[int], TokenRange]:
    """A corpus of that many tokens; token i is i."""
    return lambda token_count: TokenRange(make_dataset([token_count]), 0, token_count)
