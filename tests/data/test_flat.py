import gzip

import numpy as np
import pytest

from megatron_ngpt.config import DataConfig
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.pairs.manifest import write_manifest


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


def header(magic: int, version: int, count: int) -> bytes:
    """Of llm.c's token files: 256 int32."""
    return np.array([magic, version, count, *[0] * 253], "<i4").tobytes()


@pytest.mark.parametrize(
    ("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")]
)
def test_llm_c_and_modded_nanogpt_are_read_by_their_headers(tmp_path, magic, version, dtype):
    ids = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 500, dtype)
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(header(magic, version, 500) + ids.tobytes())
    dataset = FlatDataset(path)
    assert dataset.token_count == 500
    assert dataset.tokens(3, 500).tolist() == ids[3:].tolist()
    path.write_bytes(header(magic, version, 501) + ids.tobytes())
    with pytest.raises(ValueError, match="its header counts 501 ids, found"):
        FlatDataset(path)
    path.write_bytes(header(magic, 3, 500) + ids.tobytes())
    with pytest.raises(ValueError, match=r"version 1 or 7 .* found 3"):
        FlatDataset(path)


IDS = np.random.default_rng(1).integers(0, 50_000, 5000)
OTHERS = {
    "numpy's .npy": lambda path: np.save(path.open("wb"), IDS.astype(np.uint16)),
    "zip archive": lambda path: np.savez(path.open("wb"), IDS),
    "gzip": lambda path: path.write_bytes(gzip.compress(IDS.astype(np.uint16).tobytes())),
    "of 32 bits": lambda path: IDS.astype(np.uint32).tofile(path),
    "of 64 bits": lambda path: IDS.tofile(path),
    "found text": lambda path: path.write_text("What is this? It is text.\n" * 99),
    "index, the .idx": lambda path: path.write_bytes(b"MMIDIDX\0\0" + bytes(99)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_name(tmp_path, name):
    path = tmp_path / "x.bin"
    OTHERS[name](path)
    with pytest.raises(ValueError, match=rf"data\.train = .*x\.bin: .*{name}.*tofile") as error:
        open_corpora(DataConfig(train=str(path), valid_fraction=0))
    assert "\n" not in str(error.value)


def test_ids_of_few_letters_are_no_wider_ones(tmp_path):
    """As of a character's text: small ids, the largest of them rare."""
    ids = np.random.default_rng(2).integers(0, 64, 100_001).astype(np.uint16)
    ids[5000] = 64
    ids.tofile(tmp_path / "x.bin")
    assert FlatDataset(tmp_path / "x.bin").token_count == 100_001
    np.random.default_rng(3).integers(0, 300_000, 5000, np.int32).tofile(tmp_path / "y.bin")
    with pytest.raises(ValueError, match="32 bits"):
        FlatDataset(tmp_path / "y.bin")


def test_a_pair_that_lost_its_index_is_no_flat_file(tmp_path):
    with IndexedWriter(tmp_path / "a", "uint16", checksum=True) as writer:
        writer.add_document(range(999))
    write_manifest(writer, {})
    for name in ("a", "b_text_document"):
        (tmp_path / "a.bin").rename(tmp_path / f"{name}.bin")
        (tmp_path / "a.idx").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=rf"half of a pair.*{name}\.idx is not there"):
            FlatDataset(tmp_path / f"{name}.bin")
        (tmp_path / f"{name}.bin").rename(tmp_path / "a.bin")
