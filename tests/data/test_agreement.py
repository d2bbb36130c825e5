"""What corpora say of themselves is asked at the start, and nothing is read twice."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_ngpt.config import Config, CorpusConfig, DataConfig, ModelConfig, StageConfig
from megatron_ngpt.data.agreement import check_corpora
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.largest import largest_id
from megatron_ngpt.data.pairs.manifest import write_manifest
from megatron_ngpt.data.pairs.merge import merge
from megatron_ngpt.data.pairs.shuffle import shuffle
from megatron_ngpt.data.pairs.split import split

EOD = 2


def made_by(tokenizer: str, appended: bool = True, **more) -> dict:
    """The beginning of a manifest; a tokenizer is called by the content of its file."""
    sha256 = hashlib.sha256(tokenizer.encode()).hexdigest()
    told = {"file": tokenizer, "sha256": sha256, "vocab_size": 60}
    return {"tokenizer": told, "eod": {"id": EOD, "appended": appended}, **more}


@pytest.fixture
def corpus(tmp_path):
    """Make a pair of 40 documents of ids 3 to 49 that end with 2; None of origin: no manifest."""

    def make(name: str, origin: dict | None, seed: int = 0, largest: int = 49) -> str:
        random, prefix = np.random.default_rng(seed), str(tmp_path / name)
        with IndexedWriter(prefix, "uint16", checksum=True) as writer:
            for _ in range(40):
                writer.add_document([*random.integers(3, 50, random.integers(1, 30)), EOD])
            writer.add_document([largest, EOD])
        if origin is not None:
            write_manifest(writer, origin)
        return prefix

    return make


def config_of(train, vocab_size: int = 60, **data) -> Config:
    data = {"valid_fraction": 0.0, "train": train} | data
    return Config(model=ModelConfig(vocab_size=vocab_size), data=DataConfig(**data))


def start(config: Config) -> tuple[Config, list[str]]:
    return check_corpora(config, *open_corpora(config.data))


def blend(*prefixes: str) -> tuple[CorpusConfig, ...]:
    return tuple(CorpusConfig(prefix=each, name=f"{n}") for n, each in enumerate(prefixes))


def places(a: str, b: str) -> dict[str, dict]:
    """Every way in which a run reads two corpora."""
    return {
        "blend": {"train": blend(a, b)},
        "stage": {"train": a, "stages": (StageConfig(tokens=99, train=b),)},
        "validation": {"train": a, "valid": b},
    }


@pytest.mark.parametrize("place", ["blend", "stage", "validation"])
def test_corpora_of_different_tokenizers_are_refused_wherever_they_meet(corpus, place):
    a, b = corpus("a", made_by("x")), corpus("b", made_by("y"), seed=1)
    with pytest.raises(ValueError, match=rf"{b} and {a} are of different tokenizers \(y, SHA"):
        start(config_of(**places(a, b)[place]))
    config, notes = start(config_of(**places(a, b)[place], tokenizer_sha256="any"))
    assert (config.data.tokenizer_sha256, notes) == ("any", [])
    same = corpus("c", made_by("x"), seed=2)
    config, _ = start(config_of(**places(a, same)[place]))
    assert config.data.tokenizer_sha256 == hashlib.sha256(b"x").hexdigest()


def test_the_runs_tokenizer_is_the_corpora_s(corpus, tmp_path):
    (tmp_path / "x.model").write_text("x")
    (tmp_path / "y.model").write_text("y")
    a, unknown = corpus("a", made_by("x")), corpus("b", None, seed=1)
    start(config_of(a, tokenizer=f"{tmp_path}/x.model"))
    with pytest.raises(ValueError, match=r"data\.tokenizer = .*y\.model is not the tokenizer that"):
        start(config_of(blend(unknown, a), tokenizer=f"{tmp_path}/y.model"))
    config, notes = start(config_of(unknown, tokenizer=f"{tmp_path}/y.model"))
    assert config.data.tokenizer_sha256 == hashlib.sha256(b"y").hexdigest()
    assert notes == [
        f"not checked: which tokenizer made {unknown}, and what ends its documents (no manifest)"
    ]
    with pytest.raises(ValueError, match="are of different tokenizers"):
        start(config_of(a, tokenizer_sha256=config.data.tokenizer_sha256))
    _, notes = start(config_of(a, tokenizer=f"{tmp_path}/z.model"))
    assert notes == [f"not checked: data.tokenizer = {tmp_path}/z.model is no file"]


@pytest.mark.parametrize("origin", [made_by("x"), {}, None])
def test_the_largest_id_is_held_against_the_vocabulary(corpus, origin):
    a = corpus("a", origin)
    start(config_of(a, vocab_size=50))
    with pytest.raises(ValueError, match=r"holds token id 49, but model\.vocab_size = 49 allows"):
        start(config_of(a, vocab_size=49))


def test_a_pair_without_manifest_is_read_once(corpus, tmp_path, monkeypatch):
    dataset = IndexedDataset(corpus("a", None))
    assert largest_id(dataset) == 49
    monkeypatch.setattr("megatron_ngpt.data.largest._read", lambda _: 7)
    assert largest_id(dataset) == 49
    os.utime(f"{dataset.prefix}.bin")  # it may have changed
    assert largest_id(dataset) == 7
    monkeypatch.setattr("megatron_ngpt.data.largest._read", lambda _: 8)
    Path(f"{dataset.prefix}.largest.json").write_text("{")  # its writer was killed
    assert largest_id(dataset) == 8


def test_ends_of_documents_are_held_against_the_mask(corpus):
    a, bare = corpus("a", made_by("x")), corpus("b", made_by("x", appended=False), seed=1)
    start(config_of(a, document_mask=True, eod=EOD))
    with pytest.raises(ValueError, match=rf"data\.eod = 5, but the documents of {a} end with 2"):
        start(config_of(a, document_mask=True, eod=5))
    with pytest.raises(ValueError, match=r"data\.eod = 60 is outside"):
        start(config_of(bare, document_mask=True, eod=60))
    for mask, told in ((True, "where the .idx says"), (False, "nothing in between")):
        _, (note,) = start(config_of(bare, document_mask=mask, eod=EOD))
        assert told in note
        assert bare in note


def test_a_flat_file_without_the_id_cannot_be_masked(tmp_path):
    np.arange(100, 600, dtype=np.uint16).tofile(tmp_path / "x.bin")
    config = config_of(f"{tmp_path}/x.bin", 600, document_mask=True, eod=500)
    start(config)
    with pytest.raises(ValueError, match=r"flat file without the id data\.eod = 50,"):
        start(replace(config, data=replace(config.data, eod=50)))


def test_texts_that_spell_out_special_tokens_are_told(corpus):
    a = corpus("a", made_by("x", special_texts=7, options={"special_text": "keep"}))
    b = corpus("b", made_by("x", special_texts=5, options={"special_text": "plain"}), seed=1)
    _, (note,) = start(config_of(blend(a, b), document_mask=True, eod=EOD))
    assert note.startswith(f"7 documents of {a} spell out a special token")
    assert "end documents in the middle" in note


def test_the_manifest_of_another_pair_is_refused(corpus):
    a, b = corpus("a", made_by("x")), corpus("b", made_by("y"), seed=1)
    shutil.copy(f"{a}.manifest.json", f"{b}.manifest.json")
    with pytest.raises(ValueError, match=r"b\.manifest\.json says tokens = .* another pair"):
        start(config_of(b))
    Path(f"{b}.manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a JSON object is expected, not list\): copy the one"):
        start(config_of(b))


def link(make):
    def linked(prefix: str, other: str) -> str:
        for end in (".bin", ".idx"):
            make(prefix + end, other + end)
        return other

    return linked


def through_a_folder(prefix: str, other: str) -> str:
    os.symlink(os.path.dirname(prefix), other)
    return f"{other}/{os.path.basename(prefix)}"


def with_manifest(prefix: str, other: str) -> str:
    shutil.copy(f"{prefix}.manifest.json", f"{other}.manifest.json")
    return link(shutil.copy)(prefix, other)


def flat(prefix: str, other: str) -> str:
    shutil.copy(f"{prefix}.bin", f"{other}.bin")
    return f"{other}.bin"


NAMES = {
    "symbolic link": link(os.symlink),
    "hard link": link(os.link),
    "folder's link": through_a_folder,
    "relative path": lambda prefix, _: os.path.relpath(prefix),
    "copy": link(shutil.copy),
    "copy with its manifest": with_manifest,
    "copy as a flat file": flat,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_by_another_name_is_the_same(corpus, tmp_path, name):
    a = corpus("a", made_by("x"))
    again = NAMES[name](a, str(tmp_path / "again"))
    reads = places(a, again)
    with pytest.raises(ValueError, match=rf"data\.train: .*{again} is {a} by another name"):
        start(config_of(**reads["blend"]))
    with pytest.raises(ValueError, match=rf"data\.valid = {again} is .*{a} .*trained on"):
        start(config_of(**reads["validation"]))
    stages, _ = open_corpora(config_of(**reads["stage"]).data)
    first, second = (stage.shares[0].corpus for stage in stages)
    assert first is second  # it goes on where it was left


def test_pairs_made_of_one_another_are_known(corpus, tmp_path):
    a, b = corpus("a", made_by("x")), corpus("b", made_by("x"), seed=1)
    both, mixed = str(tmp_path / "both"), str(tmp_path / "mixed")
    merge([a, b], both)
    shuffle(both, mixed, seed=0, memory_mb=10)
    split(mixed, mixed, {"train": 0.6, "valid": 0.4})
    for train, valid in ((a, f"{mixed}_valid"), (both, b), (f"{mixed}_train", mixed)):
        with pytest.raises(ValueError, match=r"trained on, hold the same documents"):
            start(config_of(train, valid=valid))
    assert start(config_of(f"{mixed}_train", valid=f"{mixed}_valid"))[1] == []
    assert start(config_of(a, valid=b))[1] == []
    _, (note,) = start(config_of(blend(a, mixed)))
    assert note == f"{mixed} and {a} hold some of the same documents (manifests)"


def test_a_merged_pair_says_no_more_than_all_of_its_parts(corpus, tmp_path, capsys):
    a, unknown = corpus("a", made_by("x")), corpus("b", None, seed=1)
    bare, made = corpus("c", made_by("x", appended=False), seed=2), str(tmp_path / "made")
    merge([a, bare], made)
    told = json.loads(Path(f"{made}.manifest.json").read_text())
    assert told["tokenizer"]["file"] == "x"
    assert told["eod"] == {"id": EOD, "appended": False}
    assert told["largest_id"] == 49
    merge([a, unknown], made)
    told = json.loads(Path(f"{made}.manifest.json").read_text())
    assert told["tokenizer"] is None
    assert told["eod"] == {"id": None, "appended": None}
    assert f"{unknown} does not say which tokenizer made it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["symbolic link", "hard link", "copy"])
def test_dataset_tools_know_a_pair_again(corpus, tmp_path, name):
    a = corpus("a", made_by("x"))
    again = NAMES[name](a, str(tmp_path / "again"))
    with pytest.raises(ValueError, match=rf"--input names {again} twice"):
        merge([a, again], str(tmp_path / "out"))
    if name != "copy":
        with pytest.raises(ValueError, match=rf"--output-prefix {again} is an input, too"):
            merge([a], again)
