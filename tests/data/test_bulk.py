from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_ngpt.data import bulk
from megatron_ngpt.data.bulk import GigatokenEncoder, SentencePieceEncoder, bulk_encoder

IDENTITY = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
MODELS = {
    "identity": IDENTITY,
    "nmt_nfkc": dict(normalization_rule_name="nmt_nfkc"),
    "keep spaces": dict(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=False),
    "no prefix": IDENTITY | dict(add_dummy_prefix=False, split_digits=True),
    "control": IDENTITY | dict(control_symbols=["import", "self."]),
    "across words": IDENTITY | dict(split_by_whitespace=False),
    "space runs": IDENTITY | dict(allow_whitespace_only_pieces=True),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, make_tokenizer):
    return make_tokenizer(**MODELS[request.param])


@pytest.fixture(scope="module")
def encoder(model):
    return GigatokenEncoder(model)


def assert_same(encoder, tokenizer, texts):
    ids, lengths = encoder.encode([text.encode() for text in texts])
    expected = tokenizer.processor.encode(texts)
    found = [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]]
    assert [pair for pair in zip(texts, found, expected, strict=True) if pair[1] != pair[2]] == []
    assert ids.size == lengths.sum()


def test_gigatoken_gives_sentencepieces_ids(encoder, model, odd_texts):
    assert_same(encoder, model, odd_texts)


def test_long_documents(encoder, model, texts):
    assert_same(encoder, model, ["\n".join(texts) * 3, "", "x", "a" * 30_000])


def test_sentencepiece_in_bulk_is_sentencepiece(tokenizer, odd_texts):
    assert_same(SentencePieceEncoder(tokenizer), tokenizer, odd_texts)


def test_nothing_to_encode(encoder, tokenizer):
    for each in (encoder, SentencePieceEncoder(tokenizer)):
        ids, lengths = each.encode([])
        assert (ids.size, lengths.size) == (0, 0)


def test_threads_share_an_encoder(encoder, texts):
    batches = [[text.encode()] * count for text in texts for count in (1, 2, 3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(encoder.encode, batches))
    for batch, (ids, lengths) in zip(batches, found, strict=True):
        expected_ids, expected_lengths = encoder.encode(batch)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(lengths, expected_lengths)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(model_type="unigram"), "unigram"),
        (dict(byte_fallback=False), "byte_fallback"),
        (dict(user_defined_symbols=["<|x|>"]), "user-defined"),
        (dict(control_symbols=["\u2603"]), "one character"),
        (dict(treat_whitespace_as_suffix=True), "suffix"),
    ],
)
def test_models_beyond_gigatoken_go_to_sentencepiece(make_tokenizer, options, reason):
    tokenizer = make_tokenizer(**options)
    encoder, why_not = bulk_encoder(tokenizer)
    assert encoder.name == "sentencepiece"
    assert reason in why_not
    assert_same(encoder, tokenizer, ["some <|x|> \u2603 text", "", "</s>"])
    with pytest.raises(ValueError, match=reason):
        bulk_encoder(tokenizer, "gigatoken")


def test_gigatoken_is_taken_where_it_can_be(tokenizer):
    assert bulk_encoder(tokenizer)[0].name == "gigatoken"
    assert bulk_encoder(tokenizer, "sentencepiece")[0].name == "sentencepiece"


def test_without_gigatoken_there_is_sentencepiece(tokenizer, monkeypatch):
    def missing(module, extra, job):
        raise ModuleNotFoundError(f"{module} cannot be imported")

    monkeypatch.setattr(bulk, "require", missing)
    encoder, why_not = bulk_encoder(tokenizer)
    assert (encoder.name, why_not) == ("sentencepiece", "gigatoken cannot be imported")
    with pytest.raises(ModuleNotFoundError):
        bulk_encoder(tokenizer, "gigatoken")


def test_a_difference_before_the_start_leads_to_sentencepiece(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer(normalization_rule_name="nmt_nfkc")
    monkeypatch.setattr(bulk, "TextNormalizer", lambda *arguments: SimpleNamespace(many=list))
    encoder, why_not = bulk_encoder(tokenizer)
    assert encoder.name == "sentencepiece"
    assert "differ on a text that begins" in why_not


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_difference_on_the_way_ends_the_run(tokenizer, monkeypatch, length):
    encoder = GigatokenEncoder(tokenizer)
    monkeypatch.setattr(encoder, "_normalize", lambda texts: [text.upper() for text in texts])
    with pytest.raises(
        ValueError, match=r"differ on a text that begins 'xxx.*--encoder sentencepi"
    ):
        encoder.encode([b"x" * length])


def test_books(shared):
    encoder, _ = bulk_encoder(bulk.SentencePieceTokenizer(shared / "data" / "books-bpe-16k.model"))
    assert encoder.name == "gigatoken"
