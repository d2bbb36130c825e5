"""Merging, splitting, shuffling, removing duplicates: documents in and out are counted."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.pairs import blocks
from megatron_ngpt.data.pairs.deduplicate import deduplicate
from megatron_ngpt.data.pairs.info import lengths_of
from megatron_ngpt.data.pairs.manifest import read_manifest, verify, write_manifest
from megatron_ngpt.data.pairs.merge import merge
from megatron_ngpt.data.pairs.shuffle import shuffle
from megatron_ngpt.data.pairs.split import split


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_TOKENS", 50)
    monkeypatch.setattr(blocks, "_BLOCK_DOCUMENTS", 7)


def write(prefix, documents, dtype="uint16"):
    """A pair whose documents are lists of sequences."""
    with IndexedWriter(prefix, dtype, checksum=True) as writer:
        for sequences in documents:
            ids = [token for sequence in sequences for token in sequence]
            writer.add_document(ids, [len(sequence) for sequence in sequences])
    write_manifest(writer, {"tokenizer": {"sha256": "abc"}})
    return str(prefix)


def read(prefix):
    dataset = IndexedDataset(prefix)
    index, starts = dataset.document_index.tolist(), np.cumsum([0, *dataset.lengths]).tolist()
    flat = dataset.tokens(0, dataset.token_count).tolist()
    return [
        [flat[starts[s] : starts[s + 1]] for s in range(a, b)] for a, b in itertools.pairwise(index)
    ]


def random_documents(seed, count):
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(0, 60000, rng.integers(1, 40)).tolist() for _ in range(rng.integers(1, 4))]
        for _ in range(count)
    ]


def key(document):
    return json.dumps([token for sequence in document for token in sequence])


@pytest.fixture
def documents():
    """A document longer than a block, an empty one, and 200 others."""
    return [*random_documents(0, 100), [list(range(700))], [[]], *random_documents(1, 100)]


def test_merged_is_one_after_another_in_the_widest_dtype(tmp_path, documents):
    parts = [documents[:30], documents[30:], [[[70000, 1]]]]
    names = [
        write(tmp_path / f"{i}", part, "int32" if i == 2 else "uint16")
        for i, part in enumerate(parts)
    ]
    merge(names, f"{tmp_path}/all")
    assert read(tmp_path / "all") == [*documents, [[70000, 1]]]
    manifest = read_manifest(tmp_path / "all")
    assert manifest["records"] == manifest["documents"] == 203
    assert manifest["tokenizer"] == {"sha256": "abc"}
    assert "checksums agree" in verify(tmp_path / "all")
    write(tmp_path / "same", documents)
    merge(names[:2], f"{tmp_path}/two")
    for suffix in (".bin", ".idx"):
        same, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("same", "two"))
        assert same == two


def test_pairs_that_cannot_be_merged(tmp_path, documents):
    one, two = write(tmp_path / "one", documents[:3]), write(tmp_path / "two", documents[3:6])
    with pytest.raises(ValueError, match="twice"):
        merge([one, one], f"{tmp_path}/all")
    with pytest.raises(ValueError, match="is an input, too"):
        merge([one, two], two)
    manifest = read_manifest(two)
    manifest["tokenizer"]["sha256"] = "other"
    (tmp_path / "two.manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="different tokenizers"):
        merge([one, two], f"{tmp_path}/all")


def test_a_split_loses_nothing_and_is_stable_when_the_corpus_grows(tmp_path, documents):
    shares = {"train": 0.7, "valid": 0.2, "test": 0.1}
    small, large = write(tmp_path / "small", documents[:150]), write(tmp_path / "large", documents)
    split(small, f"{tmp_path}/s", shares)
    split(large, f"{tmp_path}/l", shares)
    before, after = ({n: read(f"{tmp_path}/{x}_{n}") for n in shares} for x in ("s", "l"))
    assert sorted(key(d) for side in after.values() for d in side) == sorted(map(key, documents))
    for name in shares:
        assert [d for d in after[name] if d in before[name]] == before[name]
        assert read_manifest(f"{tmp_path}/l_{name}")["documents"] == len(after[name])
    assert [d for d in documents if d in after["train"]] == after["train"]
    assert 110 < len(after["train"]) < 170
    assert 20 < len(after["valid"]) < 65


def test_where_a_document_goes_does_not_depend_on_its_dtype(tmp_path, documents):
    shares = {"a": 0.5, "b": 0.5}
    for dtype in ("uint16", "int32"):
        split(write(tmp_path / dtype, documents, dtype), f"{tmp_path}/{dtype}", shares)
    assert read(tmp_path / "uint16_a") == read(tmp_path / "int32_a")


def test_splits_that_cannot_be(tmp_path, documents):
    pair = write(tmp_path / "pair", documents[:3])
    with pytest.raises(ValueError, match="add up to 1"):
        split(pair, f"{tmp_path}/x", {"a": 0.5, "b": 0.4})
    with pytest.raises(ValueError, match="no document of 3 falls to b"):
        split(pair, f"{tmp_path}/x", {"a": 1 - 1e-9, "b": 1e-9})
    assert not list(tmp_path.glob("x*"))


def test_a_shuffle_depends_on_the_seed_and_not_on_memory(tmp_path, documents, monkeypatch):
    pair = write(tmp_path / "pair", documents)
    orders = []
    for seed, megabyte in ((0, 10**6), (0, 1000), (1, 10**6)):
        monkeypatch.setattr("megatron_ngpt.data.pairs.shuffle.MEGABYTE", megabyte)
        shuffle(pair, f"{tmp_path}/shuffled", seed, memory_mb=1)
        orders.append(read(tmp_path / "shuffled"))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != documents
    for order in orders:
        assert sorted(map(json.dumps, order)) == sorted(map(json.dumps, documents))
    assert "checksums agree" in verify(tmp_path / "shuffled")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"pair", "shuffled"}
    monkeypatch.setattr("megatron_ngpt.data.pairs.shuffle.MEGABYTE", 10)
    with pytest.raises(ValueError, match=r"--memory-mb 1: .* needs"):
        shuffle(pair, f"{tmp_path}/shuffled", 0, memory_mb=1)


@pytest.mark.parametrize("per_bucket", [1 << 24, 20])
def test_of_equal_documents_the_first_stays(tmp_path, documents, monkeypatch, per_bucket):
    monkeypatch.setattr("megatron_ngpt.data.pairs.deduplicate._DIGESTS_PER_BUCKET", per_bucket)
    one = write(tmp_path / "one", [*documents, *documents[20:40]])
    two = write(tmp_path / "two", [*random_documents(2, 50), *documents[:10]], "int32")
    made = deduplicate([one, two], f"{tmp_path}/unique")
    assert read(tmp_path / "unique") == [*documents, *random_documents(2, 50)]
    manifest = read_manifest(tmp_path / "unique")
    assert manifest["removed"] == {"duplicate": 30}
    assert manifest["records"] == made.document_count + 30


def test_lengths_are_counted_by_powers_of_two(tmp_path):
    sizes = [0, 1, 2, 3, 4, 7, 8, 700]
    lengths = lengths_of(IndexedDataset(write(tmp_path / "p", [[[5] * n] for n in sizes])))
    assert lengths.documents.tolist() == [1, 1, 2, 2, 1, 0, 0, 0, 0, 0, 1]
    assert lengths.tokens[3] == 11
    assert (lengths.shortest, lengths.longest) == (0, 700)
    rows = [line.split() for line in lengths.table().splitlines()[1:]]
    assert Counter(row[-1] for row in rows)["#" * 40] == 2
    assert rows[-1][:4] == ["512", "to", "1,023", "1"]
