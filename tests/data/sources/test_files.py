import bz2
import gzip
import lzma
from functools import partial
from pathlib import Path

import pytest

from megatron_ngpt.data.sources import find_sources
from megatron_ngpt.data.sources.files import open_bytes


def find(patterns, endings=(".jsonl", ".json")):
    return find_sources(patterns, endings)


def test_files_come_in_the_order_given_and_globs_sorted(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "other.jsonl"):
        (tmp_path / name).touch()
    found = find([f"{tmp_path}/other.jsonl", f"{tmp_path}/**/*.txt"])
    assert [Path(source.path).name for source in found] == [
        "other.jsonl",
        "a.txt",
        "b.txt",
        "c.txt",
    ]


def test_a_name_with_brackets_is_a_name(tmp_path):
    path = tmp_path / "part[1].jsonl"
    path.touch()
    assert [source.path for source in find([str(path)])] == [str(path)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["none*.jsonl"], "no such file"),
        (["deep*"], "only folders"),
        (["deep"], r"no file in it whose name ends in \.jsonl"),
        (["a.txt", "*.txt"], r"a\.txt was already given by 'a.txt'"),
    ],
)
def test_input_that_cannot_be_meant(tmp_path, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "deep").mkdir()
    with pytest.raises(ValueError, match=message):
        find(names)


def test_a_folder_stands_for_the_files_of_its_format_below_it(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / ".hidden").mkdir()
    names = ("b.jsonl", "a.jsonl.gz", "z/c.json.zst", "notes.txt", ".hidden/d.jsonl")
    for name in names:
        (tmp_path / name).touch()
    found = [source.path.removeprefix(f"{tmp_path}/") for source in find([str(tmp_path)])]
    assert found == ["a.jsonl.gz", "b.jsonl", "z/c.json.zst"]
    assert len(find([str(tmp_path)], endings=())) == 4


CONTENT = b"".join(b"line %d\n" % i for i in range(20_000))


def compress_zst(content):
    zstandard = pytest.importorskip("zstandard")
    half = len(content) // 2
    return b"".join(zstandard.compress(part) for part in (content[:half], content[half:]))


COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": compress_zst}


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_are_read_as_what_is_in_them(tmp_path, kind):
    path = tmp_path / f"text.{kind}"
    path.write_bytes(COMPRESS[kind](CONTENT))
    with open_bytes(str(path)) as file:
        assert b"".join(iter(file.readline, b"")) == CONTENT
    (source,) = find([str(path)])
    assert not source.seekable


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_compressed_file_that_is_cut_off_is_noticed(tmp_path, kind):
    path = tmp_path / f"text.{kind}"
    path.write_bytes(COMPRESS[kind](CONTENT)[:-20])
    with open_bytes(str(path)) as file, pytest.raises(EOFError):
        sum(map(len, iter(partial(file.read, 1000), b"")))


def test_urls_go_through_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("/corpus/a.jsonl", "/corpus/b.jsonl"):
        memory.pipe(name, CONTENT)
    found = find(["memory://corpus/*.jsonl"])
    assert [source.path for source in found] == [
        "memory:///corpus/a.jsonl",
        "memory:///corpus/b.jsonl",
    ]
    assert found[0].size == len(CONTENT)
    with open_bytes(found[0].path) as file:
        assert file.read() == CONTENT
    with pytest.raises(ValueError, match="no such file"):
        find(["memory://corpus/none"])
