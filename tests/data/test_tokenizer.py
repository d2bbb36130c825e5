import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.tokenizer import SentencePieceTokenizer, train_tokenizer


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "ours.model"
    train_tokenizer(texts, path, vocab_size=700)
    return SentencePieceTokenizer(path)


def test_trained_tokenizer_has_the_pieces_asked_for_and_an_end(trained):
    assert trained.vocab_size == 700
    assert trained.eos_id == 2
    assert trained.decode([trained.eos_id]) == ""


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_comes_back_as_it_went_in(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_real_text_comes_back_and_shrinks(trained, texts):
    for text in texts:
        ids = trained.encode(text)
        assert trained.decode(ids) == text
        assert len(ids) < len(text) / 2


def test_a_part_of_the_ids_decodes_to_a_part_of_the_text(trained):
    text = "naïve 😀 漢字 end"
    ids = trained.encode(text)
    beginnings = [
        trained.decode(ids[:count]).rstrip("\N{REPLACEMENT CHARACTER}")
        for count in range(len(ids) + 1)
    ]
    assert all(text.startswith(beginning) for beginning in beginnings)
    assert all(len(shorter) <= len(longer) for shorter, longer in pairwise(beginnings))
    assert beginnings[-1] == text
    assert all(isinstance(trained.decode(ids[start:]), str) for start in range(len(ids)))


def test_ids_come_from_arrays_and_from_outside_the_vocabulary(trained):
    ids = trained.encode("some text")
    assert trained.decode(np.array(ids, np.uint16)) == "some text"
    unknown = trained.processor.decode([trained.processor.unk_id()])
    assert trained.decode([700, -1, 10**9]) == unknown * 3


def test_a_text_that_is_no_unicode_is_refused(trained):
    with pytest.raises(ValueError, match="surrogates"):
        trained.encode("\ud800")


def test_a_missing_model_names_the_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no.model.*data\.tokenizer.*--tokenizer-model"):
        SentencePieceTokenizer(tmp_path / "no.model")


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"text" * 99]
)
def test_a_damaged_model_names_the_settings(tokenizer, tmp_path, damage):
    path = tmp_path / "bad.model"
    path.write_bytes(damage(tokenizer.model))
    with pytest.raises(ValueError, match=r"bad.model.*data\.tokenizer.*--tokenizer-model"):
        SentencePieceTokenizer(path)


def test_a_model_without_an_end_says_so(make_tokenizer):
    assert make_tokenizer(eos_id=-1).eos_id is None


def test_training_again_gives_the_same_file(trained, texts, tmp_path):
    train_tokenizer(texts, tmp_path / "again.model", vocab_size=700)
    assert (tmp_path / "again.model").read_bytes() == trained.model


def test_a_sample_of_the_lines_is_the_same_every_time(texts, tmp_path):
    models = []
    for name in ("a.model", "b.model"):
        train_tokenizer(texts, tmp_path / name, vocab_size=400, max_lines=200)
        models.append((tmp_path / name).read_bytes())
    assert models[0] == models[1]


def test_a_line_of_any_length_is_learnt_from(tmp_path):
    path = tmp_path / "long.model"
    train_tokenizer(["quux " * 5000], path, vocab_size=268)
    assert "\u2581quux" in {
        SentencePieceTokenizer(path).processor.id_to_piece(i) for i in range(268)
    }


@pytest.mark.parametrize(
    ("texts_given", "vocab_size", "message"),
    [
        ([], 400, "no text to learn from"),
        (["\n\n"], 400, "no text to learn from"),
        (["too little text"], 4096, r"--vocab-size 4096 is too large .* at most \d+ pieces"),
        (["text"], 200, r"--vocab-size 200 is too small.* take \d+ pieces"),
    ],
)
def test_what_cannot_be_trained_says_why(tmp_path, texts_given, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts_given, tmp_path / "none.model", vocab_size=vocab_size)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_input_is_not_sentencepieces(tmp_path):
    def texts_that_end():
        yield "some text"
        raise ValueError("file.jsonl:2: invalid JSON")

    with pytest.raises(ValueError, match=re.escape("file.jsonl:2: invalid JSON")) as caught:
        train_tokenizer(texts_that_end(), tmp_path / "none.model", vocab_size=300)
    assert "--vocab-size" not in str(caught.value)


def test_books_tokenizer(shared):
    books = SentencePieceTokenizer(shared / "data" / "books-bpe-16k.model")
    assert (books.vocab_size, books.eos_id) == (16000, 2)
    assert books.decode(books.encode("Call me Ishmael.")) == "Call me Ishmael."
