import json
from dataclasses import replace

import numpy as np
import pytest

from megatron_ngpt.data.bulk import (
    GigatokenEncoder,
    TokenizersEncoder,
    bulk_encoder,
    load_tokenizer,
)
from megatron_ngpt.data.hf_tokenizer import HFTokenizer
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.preprocess import PreprocessJob, long_documents, preprocess
from megatron_ngpt.data.sources import jsonl, long

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    """A byte-level BPE as GPT-2's."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    model.enable_truncation(5)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    model.save(str(path))
    return load_tokenizer(path)


def test_text_goes_in_and_comes_out(tokenizer, texts):
    assert isinstance(tokenizer, HFTokenizer)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (600, 0)
    for text in texts:
        assert tokenizer.decode([*tokenizer.encode(text), 0, 601]) == text


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_many_at_once_are_one_after_another(tokenizer, odd_texts, name):
    encoder, _ = bulk_encoder(tokenizer, name)
    assert encoder.name == name
    texts = [*odd_texts, "a<|endoftext|>b <|endoftext|>", "<|endoftext|>"]
    ids, lengths = encoder.encode([text.encode() for text in texts])
    found = np.split(ids, np.cumsum(lengths)[:-1])
    assert [one.tolist() for one in found] == [tokenizer.encode(text) for text in texts]


def test_special_tokens_as_text_go_through_gigatoken_too(tokenizer):
    plain = load_tokenizer(tokenizer.path)
    plain.take_special_as_text()
    encoder, why = bulk_encoder(plain)
    assert (encoder.name, why) == ("gigatoken", "")
    found, _ = encoder.encode([b"a<|endoftext|>b"])
    assert found.tolist() == plain.encode("a<|endoftext|>b") != tokenizer.encode("a<|endoftext|>b")


def test_gigatoken_is_taken_where_it_can_be(tokenizer):
    assert isinstance(bulk_encoder(tokenizer)[0], GigatokenEncoder)
    with pytest.raises(ValueError, match=r"--encoder sentencepiece does not read tokenizer\.json"):
        bulk_encoder(tokenizer, "sentencepiece")


@pytest.mark.parametrize(
    ("part", "settings", "reason"),
    [
        ("normalizer", {"type": "Lowercase"}, "gigatoken: Unsupported normalizer type"),
        ("model", {"dropout": 0.01}, "drops merges at random"),
        # which gigatoken 0.10 does not look at
        ("added_tokens", {"single_word": True}, "differ on a text"),
    ],
)
def test_what_gigatoken_cannot_do_goes_to_tokenizers(tokenizer, tmp_path, part, settings, reason):
    description = json.loads(tokenizer.model)
    old = description[part]
    description[part] = [t | settings for t in old] if part == "added_tokens" else settings
    if part == "model":
        description[part] = old | settings
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    changed = load_tokenizer(tmp_path / "tokenizer.json")
    encoder, why = bulk_encoder(changed)
    assert isinstance(encoder, TokenizersEncoder)
    assert reason in why
    with pytest.raises(ValueError, match=reason):
        bulk_encoder(changed, "gigatoken")


def test_a_config_beside_it_names_the_end(tokenizer, tmp_path):
    for name in ({"content": "a"}, "a"):
        (tmp_path / "tokenizer.json").write_bytes(tokenizer.model)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": name}))
        assert load_tokenizer(tmp_path / "tokenizer.json").eos_id == tokenizer.encode("a")[0]


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tokenizer(tmp_path / "no.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "empty.json")


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_a_corpus_with_a_long_document(tokenizer, texts, tmp_path, monkeypatch, name):
    for module in (jsonl, long):
        monkeypatch.setattr(module, "LONG", 4000)
    for encoder in (GigatokenEncoder, TokenizersEncoder):
        monkeypatch.setattr(encoder, "batch_bytes", 3000)
    monkeypatch.setattr(long_documents, "_AROUND", 200)
    monkeypatch.setattr(long_documents, "_SEARCHED", 2000)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["short", *texts]))
    job = PreprocessJob(
        inputs=[str(path)],
        output_prefix=str(tmp_path / "out"),
        tokenizer=str(tokenizer.path),
        append_eod=True,
        encoder=name,
    )
    lines = []
    preprocess(job, lines.append)
    assert f"encoded by {name}" in lines[0]
    made = IndexedDataset(tmp_path / "out_text_document")
    for number, text in enumerate(["short", *texts]):
        assert made.document(number).tolist() == [*tokenizer.encode(text), tokenizer.eos_id]


LONG_TEXT = "twice " * 900 + "<|endoftext|> and more words " * 2
SPELLED = ["no mark", "a <|endoftext|> in it", "end<|endoftext|>", "<|endoftext", LONG_TEXT]
MARKED = [1, 2, 4]


@pytest.mark.parametrize("length", [4000, 1 << 24])
@pytest.mark.parametrize("choice", ["keep", "plain", "refuse"])
def test_texts_that_spell_out_a_special_token(tokenizer, tmp_path, monkeypatch, choice, length):
    """Also in a text encoded in parts. What is kept is what Megatron-LM's tool makes of it."""
    for module in (jsonl, long):
        monkeypatch.setattr(module, "LONG", length)
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SPELLED))
    job = PreprocessJob(
        inputs=[str(path)],
        output_prefix=str(tmp_path / "out"),
        tokenizer=str(tokenizer.path),
        special_text=choice,
        on_error="skip",
    )
    summary = preprocess(job, lambda line: None)
    made = IndexedDataset(tmp_path / "out_text_document")
    documents = [made.document(number).tolist() for number in range(made.document_count)]
    manifest = json.loads((tmp_path / "out_text_document.manifest.json").read_text())
    assert (manifest["options"]["special_text"], manifest["eod"]["id"]) == (choice, 0)
    if choice == "refuse":
        assert documents == [tokenizer.encode(SPELLED[n]) for n in (0, 3)]
        assert summary.refused == {"special token": 3}
        assert manifest["special_texts"] == 0
        with pytest.raises(ValueError, match=r":2: special token \(<\|endoftext\|> is written out"):
            preprocess(replace(job, on_error="refuse"), lambda line: None)
        return
    assert summary.special["text"] == manifest["special_texts"] == len(MARKED)
    assert manifest["largest_id"] == max(map(max, documents))
    if choice == "keep":
        assert documents == [tokenizer.encode(text) for text in SPELLED]
        assert [n for n, ids in enumerate(documents) if 0 in ids] == MARKED
    else:
        assert not any(0 in ids for ids in documents)
        assert [tokenizer.decode(ids) for ids in documents] == SPELLED


def test_a_sentencepiece_model_whose_end_mark_is_text(make_tokenizer, tmp_path):
    """Control pieces no text can spell out, user-defined ones it can."""
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a </s> b"}\n')
    for options, count in (({}, 0), ({"user_defined_symbols": ["</s>"]}, 1)):
        model = make_tokenizer(**options)
        job = PreprocessJob(
            inputs=[str(path)], output_prefix=str(tmp_path / f"{count}"), tokenizer=str(model.path)
        )
        assert preprocess(job, lambda line: None).special["text"] == count
    with pytest.raises(ValueError, match=r"--special-text plain: .*</s> as user-defined"):
        preprocess(replace(job, special_text="plain"), lambda line: None)
