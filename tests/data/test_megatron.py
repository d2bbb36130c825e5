"""Pairs go both ways between us and megatron-core; skipped where it is not installed."""

import warnings

import numpy as np
import pytest
import torch

from megatron_ngpt.config import DataConfig
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter

DOCUMENTS = [[5, 6, 7], [60_000], [], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9]]


@pytest.fixture(scope="module")
def megatron():
    """megatron-core's module for indexed datasets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("megatron.core.datasets.indexed_dataset")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_megatron_reads_ours(megatron, tmp_path, dtype):
    with IndexedWriter(tmp_path / "pair", dtype) as writer:
        for document in DOCUMENTS:
            writer.add_document(document)
    theirs = megatron.IndexedDataset(str(tmp_path / "pair"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == DOCUMENTS
    assert theirs.document_indices.tolist() == list(range(len(DOCUMENTS) + 1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_we_read_megatrons_and_write_the_same_bytes(megatron, tmp_path, dtype):
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in DOCUMENTS:
        # A document of two sequences, as when text is split into sentences.
        lengths = [1, len(document) - 1] if len(document) > 1 else [len(document)]
        builder.add_document(torch.tensor(document, dtype=torch.int64), lengths)
    builder.finalize(str(tmp_path / "theirs.idx"))
    ours = IndexedDataset(tmp_path / "theirs")
    ours.verify()
    assert [ours.document(i).tolist() for i in range(ours.document_count)] == DOCUMENTS
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for document in DOCUMENTS:
            lengths = [1, len(document) - 1] if len(document) > 1 else None
            writer.add_document(document, lengths)
    for kind in ("bin", "idx"):
        assert (tmp_path / f"ours.{kind}").read_bytes() == (
            tmp_path / f"theirs.{kind}"
        ).read_bytes()
    (stage,), _ = open_corpora(DataConfig(train=str(tmp_path / "theirs"), valid_fraction=0))
    assert stage.shares[0].corpus.token_count == sum(map(len, DOCUMENTS))
