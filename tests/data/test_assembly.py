"""Pairs put together by several processes equal one writer's, whatever the shares."""

import errno
import os
import pickle
import random
import zlib

import numpy as np
import pytest

from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.indexed.assembly import Assembly, Part
from megatron_ngpt.data.indexed.files import Stretch, copy_bytes, crc32_combined, crc32_of


def test_checksums_of_stretches_combine_to_the_whole():
    rng = random.Random(0)
    content = rng.randbytes(300_000)
    for _ in range(20):
        cuts = sorted(rng.choices(range(len(content) + 1), k=rng.randrange(6)))
        ends = list(zip([0, *cuts], [*cuts, len(content)], strict=True))
        stretches = [Stretch(".bin", a, b - a, zlib.crc32(content[a:b])) for a, b in ends]
        assert crc32_combined(stretches, len(content)) == f"{zlib.crc32(content):08x}"


@pytest.fixture
def parts(tmp_path):
    """Pairs of 0 to 9 documents of one or two sequences, and the pair that one writer makes."""
    rng, made = random.Random(1), []
    with IndexedWriter(tmp_path / "whole", "uint16", checksum=True) as whole:
        for number in range(7):
            prefix = str(tmp_path / f"part{number}")
            with IndexedWriter(prefix, "uint16", checksum=True) as writer:
                for _ in range(rng.randrange(10) if number != 3 else 0):
                    ids = rng.choices(range(65000), k=rng.randrange(40))
                    cut = rng.randrange(len(ids) + 1)
                    lengths = [cut, len(ids) - cut] if cut else None
                    for target in (writer, whole):
                        target.add_document(ids, lengths)
            counts = writer.sequence_count, writer.document_count, writer.token_count
            made.append(Part(prefix, *counts, int(writer.checksums[".bin"], 16), 0))
    return made


def files_of(prefix):
    return [open(f"{prefix}{suffix}", "rb").read() for suffix in (".bin", ".idx")]


@pytest.mark.parametrize("ranks", [1, 3, 9])
@pytest.mark.parametrize("kernel", ["copies", "cannot copy", "copies a little"])
def test_shares_of_any_ranks_make_the_pair_of_one_writer(
    parts, tmp_path, monkeypatch, ranks, kernel
):
    def copy(*args):
        if kernel == "cannot copy":
            raise OSError(errno.EXDEV, "other file system")
        source, target, count, *offsets = args
        return original(source, target, min(count, 7), *offsets)

    original = getattr(os, "copy_file_range", None)
    if kernel != "copies" and original:
        monkeypatch.setattr(os, "copy_file_range", copy)
    first = Assembly(tmp_path / "made", np.dtype("uint16"), parts)
    first.begin()
    found = []
    for rank in reversed(range(ranks)):
        other = pickle.loads(pickle.dumps(first))
        found += other.copy(range(rank, len(parts), ranks), threads=2)
    assert not (tmp_path / "made.idx").exists()
    first.finish(found)
    assert files_of(tmp_path / "made") == files_of(tmp_path / "whole")
    for suffix in (".bin", ".idx"):
        assert first.checksums[suffix] == crc32_of(tmp_path / f"made{suffix}")
    IndexedDataset(tmp_path / "made").verify()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_part_that_has_changed_is_refused(parts, tmp_path):
    assembly = Assembly(tmp_path / "made", np.dtype("uint16"), parts)
    assembly.begin()
    with IndexedWriter(parts[0].prefix, "uint16") as writer:
        writer.add_document([1])
    with pytest.raises(ValueError, match="part0 has changed"):
        assembly.copy([0], threads=1)
    assembly.abandon()
    assert not list(tmp_path.glob("made*"))


def test_a_share_that_is_missing_is_noticed(parts, tmp_path):
    assembly = Assembly(tmp_path / "made", np.dtype("uint16"), parts)
    assembly.begin()
    found = assembly.copy(range(1, len(parts)), threads=1)
    with pytest.raises(AssertionError):
        assembly.finish(found)
    assert not (tmp_path / "made.idx").exists()


def test_copying_past_a_full_disk_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 10)

    def full(*args):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with (tmp_path / "b").open("wb") as file, pytest.raises(OSError, match="no space left"):
        copy_bytes(tmp_path / "a", file.fileno(), 0, 10)
