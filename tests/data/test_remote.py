import threading

import fsspec
import numpy as np
import pytest

from megatron_ngpt.config import DataConfig
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.pairs.manifest import manifest_of, read_manifest
from megatron_ngpt.data.remote import local_copy


@pytest.fixture
def put(tmp_path):
    """Write a pair and put it behind a URL."""
    memory = fsspec.filesystem("memory")

    def write(name, tokens):
        with IndexedWriter(tmp_path / "pair", "uint16") as writer:
            writer.add_document(tokens)
        for end in (".bin", ".idx"):
            memory.pipe(f"/bucket/{name}{end}", (tmp_path / f"pair{end}").read_bytes())
        return f"memory://bucket/{name}"

    yield write
    memory.rm("/bucket", recursive=True)


def config(url, tmp_path):
    return DataConfig(train=url, valid_fraction=0, cache_dir=str(tmp_path / "cache"))


def tokens_of(url, tmp_path):
    ((stage,), _) = open_corpora(config(url, tmp_path))
    corpus = stage.shares[0].corpus
    return corpus.tokens(0, corpus.token_count).tolist()


def test_a_corpus_behind_a_url_is_copied_once(put, tmp_path, monkeypatch):
    url = put("a", [1, 2, 3])
    assert tokens_of(url, tmp_path) == [1, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.filesystem("memory"), "get_file", None)
        assert tokens_of(url, tmp_path) == [1, 2, 3]
    put("a", [4, 5, 6])
    assert tokens_of(url, tmp_path) == [4, 5, 6]


def test_a_half_written_copy_is_made_anew(put, tmp_path):
    url = put("a", [1, 2, 3])
    copy = local_copy(url, str(tmp_path / "cache"))
    for end in (".bin", ".idx"):
        (tmp_path / f"{copy}{end}").unlink()
        (tmp_path / f"{copy}{end}.tmp").write_bytes(b"half")
    assert tokens_of(url, tmp_path) == [1, 2, 3]


def test_flat_files_and_equal_names_do_not_meet(put, tmp_path):
    one, two = put("one/a", [1, 2, 3]), put("two/a", [4, 5])
    assert tokens_of(one, tmp_path) == [1, 2, 3]
    assert tokens_of(two, tmp_path) == [4, 5]
    fsspec.filesystem("memory").pipe("/bucket/train.bin", np.array([7, 8], "<u2").tobytes())
    assert tokens_of("memory://bucket/train.bin", tmp_path) == [7, 8]


def test_many_processes_get_one_copy(put, tmp_path):
    url, found = put("a", range(1000)), []
    threads = [
        threading.Thread(target=lambda: found.append(tokens_of(url, tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(1000))] * 8


def test_what_is_not_there_names_the_setting(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.train = memory://bucket/none"):
        open_corpora(config("memory://bucket/none", tmp_path))


def test_a_manifest_comes_along_and_goes_again(put, tmp_path):
    url, memory = put("a", [1, 2, 3]), fsspec.filesystem("memory")
    memory.pipe("/bucket/a.manifest.json", b'{"tokens": 3}')
    copy = local_copy(url, str(tmp_path / "cache"))
    assert read_manifest(copy) == {"tokens": 3}
    memory.pipe("/bucket/a.manifest.json", b'{"tokens": 4}')
    with pytest.raises(ValueError, match="another pair"):
        manifest_of(IndexedDataset(local_copy(url, str(tmp_path / "cache"))))
    memory.rm("/bucket/a.manifest.json")
    assert read_manifest(local_copy(url, str(tmp_path / "cache"))) is None
