import numpy as np
import pytest

from megatron_ngpt.config import DataConfig
from megatron_ngpt.data.corpus import open_corpora


@pytest.fixture
def flat(tmp_path):
    """What nanoGPT's prepare.py leaves: np.array(ids, dtype=np.uint16).tofile(...)."""
    for name, ids in {"train.bin": range(1000), "val.bin": range(60_000, 60_020)}.items():
        np.array(ids, dtype=np.uint16).tofile(tmp_path / name)
    return tmp_path


def test_reads_a_flat_file_beside_a_pair(flat, make_dataset):
    data = DataConfig(train=str(flat / "train.bin"), valid=str(flat / "val.bin"))
    (stage,), (valid,) = open_corpora(data)
    train = stage.shares[0].corpus
    assert train.tokens(0, train.token_count).tolist() == list(range(1000))
    assert valid.corpus.tokens(0, 20).tolist() == list(range(60_000, 60_020))
    assert valid.name == "val.bin"


def test_without_documents_nothing_can_be_held_back(flat):
    with pytest.raises(ValueError, match=r"the 1 documents of .*train\.bin.*set data\.valid"):
        open_corpora(DataConfig(train=str(flat / "train.bin")))


def test_half_a_pair_an_odd_file_and_none_are_refused(flat, make_dataset):
    pair = make_dataset([3]).prefix
    (flat / "odd.bin").write_bytes(b"abc")
    for path, error, message in (
        (f"{pair}.bin", ValueError, r"belongs to .*\.idx: name the pair without"),
        (flat / "odd.bin", ValueError, "expected uint16 ids, found 3 bytes"),
        (flat / "absent.bin", FileNotFoundError, "no such file"),
    ):
        with pytest.raises(error, match=rf"data\.train = .*{message}"):
            open_corpora(DataConfig(train=str(path)))
