import gc
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter, dtype_for
from megatron_ngpt.data.indexed.format import HEADER_SIZE, Header

GOLDEN = ["uint16", "int32"]


@pytest.fixture(params=GOLDEN)
def golden(request, shared):
    """(prefix, documents) of a pair that megatron-core wrote."""
    prefix = shared / "golden" / "megatron_indexed" / request.param
    return prefix, json.loads(prefix.with_suffix(".json").read_text())


@pytest.fixture
def pair(tmp_path):
    """Prefix of a sound pair: documents of 3, 2 + 4 and 1 uint16 tokens, four sequences."""
    with IndexedWriter(tmp_path / "pair", "uint16") as writer:
        writer.add_document([1, 2, 3])
        writer.add_document([4, 5, 6, 7, 8, 9], lengths=[2, 4])
        writer.add_document([10])
    return tmp_path / "pair"


def patch(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def files(prefix):
    return [prefix.with_suffix(suffix).read_bytes() for suffix in (".bin", ".idx")]


# Reading


def test_reads_what_megatron_core_wrote(golden):
    prefix, documents = golden
    dataset = IndexedDataset(prefix)
    dataset.verify()
    assert dataset.dtype == prefix.name
    assert dataset.document_count == len(documents)
    assert dataset.lengths.tolist() == [n for doc in documents for n in doc["lengths"]]
    assert dataset.sequence_count == len(dataset.lengths) > len(documents)
    for number, document in enumerate(documents):
        assert dataset.document(number).tolist() == document["tokens"]
    flat = [token for document in documents for token in document["tokens"]]
    assert dataset.tokens(0, dataset.token_count).tolist() == flat


def test_documents_start_after_all_tokens_before_them(pair):
    dataset = IndexedDataset(pair)
    assert [dataset.document_start(number) for number in range(4)] == [0, 3, 9, 10]
    assert dataset.pointers.tolist() == [0, 6, 10, 18]
    assert dataset.document_index.tolist() == [0, 1, 3, 4]


def test_tokens_are_a_view_that_cannot_be_written(pair):
    tokens = IndexedDataset(pair).tokens(2, 5)
    assert tokens.tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 7


def test_opening_ten_million_documents_allocates_nothing(tmp_path):
    count = 10_000_000
    header = Header(np.dtype("uint16"), count, count)
    (tmp_path / "big.bin").write_bytes(bytes(2))
    idx = tmp_path / "big.idx"
    idx.write_bytes(header.pack())
    os.truncate(idx, header.idx_size)  # sparse: zeros that take no space
    patch(idx, header.pointers_offset - 4, struct.pack("<i", 1))
    patch(idx, header.idx_size - 8, struct.pack("<q", count))
    tracemalloc.start()
    dataset = IndexedDataset(tmp_path / "big")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dataset.document_count == count
    assert peak < 100_000  # bytes; one table alone would be 40 million


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (0, b"MMIDIDY\0\0", "magic bytes"),
        (0, b"TNTIDX\0\0\1", "legacy one .*--data-impl lazy or cached.*--data-impl mmap"),
        (9, struct.pack("<Q", 2), "expected format version 1, found version 2"),
        (17, b"\x07", r"expected an integer dtype code .*, found code 7"),
        (17, b"\xff", "found code 255"),
        (18, struct.pack("<Q", 5), r"expected 126 bytes for 5 sequences .*, found 114"),
        (18, struct.pack("<Q", 2**64 - 1), "sequences in 3 documents, found 114"),
        (26, struct.pack("<Q", 0), "document index of at least 1 entry"),
        (26, struct.pack("<Q", 5), r"in 4 documents, found 114"),
        (50, struct.pack("<q", 2), "the first sequence at byte 0, found it at byte 2"),
        (82, struct.pack("<q", 1), "document index from sequence 0 to 4, found one from 1 to 4"),
        (106, struct.pack("<q", 3), "document index from sequence 0 to 4, found one from 0 to 3"),
    ],
)
def test_corrupt_index_is_refused(pair, offset, content, message):
    patch(pair.with_suffix(".idx"), offset, content)
    with pytest.raises(ValueError, match=message) as error:
        IndexedDataset(pair)
    assert str(pair.with_suffix(".idx")) in str(error.value)
    assert "tools/preprocess_data.py" in str(error.value)


# Writers that share the layout and not the order of codes: what each calls the types of ids.
# Megatron-LM and NeMo: megatron/core/datasets/indexed_dataset.py, DType.
# Megatron-DeepSpeed: megatron/data/indexed_dataset.py; GPT-NeoX: megatron/data/indexed_dataset.py.
INTEGERS = ["uint8", "int8", "int16", "int32", "int64"]
CODES = {
    "Megatron-LM, NeMo": [*INTEGERS, "float64", "float32", "uint16"],
    "Megatron-DeepSpeed, GPT-NeoX": [*INTEGERS, "float32", "float64", "uint16"],
}


@pytest.mark.parametrize(("writer", "name"), [(w, name) for w in CODES for name in CODES[w]])
def test_reads_the_layout_that_other_writers_publish(tmp_path, writer, name):
    """Written field by field: sizes in tokens, pointers in bytes, documents in sequences."""
    dtype, sizes, documents = np.dtype(name), [3, 0, 2, 1], [0, 1, 3, 4]
    tokens = np.arange(1, 7).astype(dtype)
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * dtype.itemsize
    (tmp_path / "pair.bin").write_bytes(tokens.tobytes())
    (tmp_path / "pair.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", 1 + CODES[writer].index(name))
        + struct.pack("<Q", len(sizes))
        + struct.pack("<Q", len(documents))
        + np.array(sizes, "<i4").tobytes()
        + pointers.astype("<i8").tobytes()
        + np.array(documents, "<i8").tobytes()
    )
    if dtype.kind == "f":
        with pytest.raises(ValueError, match=r"an integer dtype code .*, found code [67]"):
            IndexedDataset(tmp_path / "pair")
        return
    dataset = IndexedDataset(tmp_path / "pair")
    dataset.verify()
    assert dataset.dtype == dtype
    assert [dataset.document(i).tolist() for i in range(3)] == [[1, 2, 3], [4, 5], [6]]


@pytest.mark.parametrize("size", [0, HEADER_SIZE - 1, HEADER_SIZE, 113, 115])
def test_index_of_another_size_is_refused(pair, size):
    os.truncate(pair.with_suffix(".idx"), size)
    with pytest.raises(ValueError, match=rf"pair\.idx: expected .* bytes.*, found .*{size}"):
        IndexedDataset(pair)


@pytest.mark.parametrize("size", [0, 19, 21, 22])
def test_tokens_of_another_size_are_refused(pair, size):
    os.truncate(pair.with_suffix(".bin"), size)
    with pytest.raises(ValueError, match=rf"pair\.bin: expected 20 bytes.*, found {size}"):
        IndexedDataset(pair)


def test_multimodal_pair_is_named_as_such(pair):
    os.truncate(pair.with_suffix(".idx"), 114 + 4)  # one mode byte per sequence
    with pytest.raises(ValueError, match="multimodal"):
        IndexedDataset(pair)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_file_is_named(pair, suffix):
    pair.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"pair\{suffix}: no such file.*without \.bin"):
        IndexedDataset(pair)


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (34 + 4, struct.pack("<i", 3), "sequence 2 to start at byte 12, found it at byte 10"),
        (34 + 4, struct.pack("<i", -2), "sequence 1 of 0 or more tokens, found -2"),
        (50 + 16, struct.pack("<q", 12), "sequence 2 to start at byte 10, found it at byte 12"),
        (82 + 8, struct.pack("<q", 4), "document 1 to end at .* sequence 4, found .* sequence 3"),
    ],
)
def test_verify_finds_damage_between_the_ends(pair, offset, content, message):
    patch(pair.with_suffix(".idx"), offset, content)
    dataset = IndexedDataset(pair)
    with pytest.raises(ValueError, match=message):
        dataset.verify()


def test_verify_finds_a_negative_length_that_adds_up(pair):
    patch(pair.with_suffix(".idx"), 34 + 4, struct.pack("<2i", -2, 8))
    patch(pair.with_suffix(".idx"), 50 + 16, struct.pack("<q", 2))
    with pytest.raises(ValueError, match="sequence 1 of 0 or more tokens, found -2"):
        IndexedDataset(pair).verify()


def test_verify_looks_at_every_one_of_many_sequences(make_dataset):
    dataset = make_dataset([1] * 150_000)
    dataset.verify()
    wrong = 65_536  # the first pointer of the second chunk
    path = dataset.prefix + ".idx"
    with open(path, "r+b") as file:
        file.seek(HEADER_SIZE + 4 * 150_000 + 8 * wrong)
        file.write(struct.pack("<q", 8))
    with pytest.raises(ValueError, match=f"sequence {wrong} to start"):
        IndexedDataset(dataset.prefix).verify()


# Writing


def test_writes_the_bytes_megatron_core_wrote(golden, tmp_path):
    prefix, documents = golden
    with IndexedWriter(tmp_path / prefix.name, prefix.name) as writer:
        for document in documents:
            writer.add_document(np.array(document["tokens"]), document["lengths"])
    assert files(tmp_path / prefix.name) == files(prefix)
    assert writer.document_count == len(documents)
    assert len(list(tmp_path.iterdir())) == 2


documents_of_sequences = st.lists(
    st.lists(st.lists(st.integers(0, 65535), max_size=5), max_size=4), max_size=8
)


@settings(deadline=None)
@given(documents=documents_of_sequences, dtype=st.sampled_from(["uint16", "int32", "int64"]))
def test_round_trip(tmp_path_factory, documents, dtype):
    prefix = tmp_path_factory.mktemp("pair") / "pair"
    with IndexedWriter(prefix, dtype) as writer:
        for sequences in documents:
            writer.add_document(list(chain(*sequences)), [len(tokens) for tokens in sequences])
    dataset = IndexedDataset(prefix)
    dataset.verify()
    assert dataset.dtype == dtype
    assert dataset.document_count == writer.document_count == len(documents)
    assert dataset.token_count == writer.token_count
    assert dataset.lengths.tolist() == [len(tokens) for doc in documents for tokens in doc]
    for number, sequences in enumerate(documents):
        assert dataset.document(number).tolist() == list(chain(*sequences))


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 5), max_size=30), cut=st.integers(0, 30))
def test_bulk_and_single_documents_give_the_same_bytes(tmp_path_factory, lengths, cut):
    folder = tmp_path_factory.mktemp("pair")
    tokens, ends = np.arange(sum(lengths)), np.cumsum([0, *lengths])
    with IndexedWriter(folder / "single", "uint16") as writer:
        for start, stop in pairwise(ends):
            writer.add_document(tokens[start:stop])
    with IndexedWriter(folder / "bulk", "uint16") as writer:
        at = ends[min(cut, len(lengths))]
        writer.add_documents(tokens[:at], lengths[:cut])
        writer.add_documents(tokens[at:], lengths[cut:])
    assert files(folder / "single") == files(folder / "bulk")


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    tokens, lengths = np.zeros(20_000, np.uint16), np.full(10_000, 2)
    tracemalloc.start()
    with IndexedWriter(tmp_path / "pair", "uint16") as writer:
        for _ in range(100):
            writer.add_documents(tokens, lengths)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    IndexedDataset(tmp_path / "pair").verify()
    assert writer.document_count == 1_000_000
    assert peak < 8 << 20  # bytes; the tables of a million documents are 20 million


@pytest.mark.parametrize(
    ("tokens", "dtype"),
    [([65536], "uint16"), ([-1], "uint16"), ([2**31], "int32"), ([0.5], "uint16")],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path, tokens, dtype):
    with (
        IndexedWriter(tmp_path / "pair", dtype) as writer,
        pytest.raises(ValueError, match=f"{tokens[0]} .* do not fit {dtype}"),
    ):
        writer.add_document(np.array(tokens))


@pytest.mark.parametrize("lengths", [[2], [4], [], [5, -2], [2**32 + 3]])
def test_lengths_that_do_not_add_up_are_refused(tmp_path, lengths):
    with IndexedWriter(tmp_path / "pair", "uint16") as writer:
        with pytest.raises(ValueError, match=r"add up|cannot be stored"):
            writer.add_document([1, 2, 3], lengths)
        with pytest.raises(ValueError, match=r"add up|cannot be stored"):
            writer.add_documents([1, 2, 3], lengths)
    assert IndexedDataset(tmp_path / "pair").document_count == 0


def test_dtype_without_a_code_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="float32 cannot be stored"):
        IndexedWriter(tmp_path / "pair", "float32")
    assert not list(tmp_path.iterdir())


def test_dtype_is_megatrons_choice():
    assert [dtype_for(size) for size in (2, 65499, 65500)] == ["uint16", "uint16", "int32"]


# Interruption


def test_exception_removes_what_was_written_and_keeps_the_old_pair(pair):
    def interrupted():
        with IndexedWriter(pair, "uint16") as writer:
            writer.add_document([7])
            raise KeyboardInterrupt

    before = files(pair)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(pair) == before
    assert len(list(pair.parent.iterdir())) == 2


def test_failure_to_finish_removes_what_was_written(pair, monkeypatch):
    def full(_):
        raise OSError("no space left on device")

    before = files(pair)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"), IndexedWriter(pair, "uint16") as writer:
        writer.add_document([7])
    assert files(pair) == before
    assert len(list(pair.parent.iterdir())) == 2


def test_stop_between_the_two_renames_leaves_no_index(pair, monkeypatch):
    replace = os.replace

    def stop_before_the_index(source, target):
        if target.suffix == ".idx":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_before_the_index)
    # As many tokens as the old pair: its index would fit the new tokens by size.
    with pytest.raises(KeyboardInterrupt), IndexedWriter(pair, "uint16") as writer:
        writer.add_document(range(10))
    with pytest.raises(FileNotFoundError, match=r"pair\.idx"):
        IndexedDataset(pair)


def test_killed_writer_leaves_no_pair_and_does_not_hinder_the_next(tmp_path):
    script = (
        "import os, sys; from megatron_ngpt.data.indexed import IndexedWriter\n"
        "with IndexedWriter(sys.argv[1], 'uint16') as writer:\n"
        "    writer.add_document(range(50_000))\n"
        "    os._exit(9)\n"
    )
    prefix = tmp_path / "pair"
    killed = subprocess.run([sys.executable, "-c", script, str(prefix)], check=False)
    assert killed.returncode == 9
    assert {path.suffix for path in tmp_path.iterdir()} == {".tmp"}
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add_document([1, 2])
    assert IndexedDataset(prefix).document(0).tolist() == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_open_pair_holds_no_file_descriptor(tmp_path):
    """A blend of 1,000 corpora opens 2,000 files, where a process may often have 1,024."""
    script = (
        "import resource, sys\n"
        "from megatron_ngpt.data.indexed import IndexedDataset\n"
        "_, most = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))\n"
        "opened = [IndexedDataset(sys.argv[1]) for _ in range(1000)]\n"
        "print(sum(int(dataset.tokens(1, 2)[0]) for dataset in opened))\n"
    )
    prefix = tmp_path / "pair"
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add_document([4, 5])
    command = [sys.executable, "-c", script, str(prefix)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "5000\n", "")


def test_tokens_outlive_their_dataset_and_cannot_be_written(tmp_path):
    with IndexedWriter(tmp_path / "pair", "uint16") as writer:
        writer.add_document([4, 5])
    tokens = IndexedDataset(tmp_path / "pair").tokens(0, 2)
    gc.collect()
    assert tokens.tolist() == [4, 5]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1
