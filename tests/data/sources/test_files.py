import bz2
import gzip
import lzma
import os
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


def test_one_file_by_two_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    os.link("a.jsonl", "c.jsonl")
    names = ["./a.jsonl", str(tmp_path / "a.jsonl"), "folder", "c.jsonl", "folder/../a.jsonl"]
    for name in names:
        with pytest.raises(ValueError, match=r"is a\.jsonl by another name, was already given"):
            find(["a.jsonl", name])
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="by another name"):
        find(["a.jsonl", f"file://{tmp_path}/a.jsonl"])


def test_folders_that_are_links_are_read_and_loops_are_not(tmp_path):
    for name in ("in", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").touch()
    (tmp_path / "elsewhere" / "deep" / "b.jsonl").touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    found = [source.path.removeprefix(f"{tmp_path}/") for source in find([f"{tmp_path}/in"])]
    assert found == ["in/a.jsonl", "in/link/deep/b.jsonl"]
    (tmp_path / "in" / "twice").symlink_to(tmp_path / "elsewhere" / "deep")
    with pytest.raises(ValueError, match=r"twice/b\.jsonl, which is .*link/deep/b\.jsonl by anoth"):
        find([f"{tmp_path}/in"])
