"""The fast tokenizer against SentencePiece itself."""

import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megatron_ngpt.data.tokenizer import SentencePieceTokenizer, train_tokenizer
from megatron_ngpt.hf.tokenizer import fast_tokenizer
from tests.hf.conftest import SENTENCES

TEXTS = [
    "", " ", "  a", "a ", "a  b \n\n\t c", "the cat sat on the mat", "déjà vu", "e\u0301 ﬁ",
    "日本語 🎉\x00x", "a" * 50, "1234567890", "▁▁ ▁", "\u00a0\u3000x",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bpe", "unigram", "bpe of nmt_nfkc"])
def both(request, tmp_path_factory):
    """SentencePiece and the fast tokenizer, saved and loaded by transformers."""
    folder, (kind, _, rule) = tmp_path_factory.mktemp("both"), request.param.partition(" of ")
    train_tokenizer(
        SENTENCES * 20, folder / "toy.model", vocab_size=285, model_type=kind,
        normalization=rule or "identity",
    )  # fmt: skip
    slow = SentencePieceTokenizer(folder / "toy.model")
    fast_tokenizer(slow).save_pretrained(folder / "fast")
    return slow, AutoTokenizer.from_pretrained(folder / "fast")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_sentencepiece_s(both, text):
    slow, fast = both
    ids = slow.encode(text)
    assert fast(text)["input_ids"] == ids
    assert fast.decode(ids) == slow.decode(ids)


def test_the_name_of_a_byte_written_out_is_no_byte(tmp_path):
    train_tokenizer(SENTENCES * 20, tmp_path / "toy.model", vocab_size=285)
    slow = SentencePieceTokenizer(tmp_path / "toy.model")
    assert fast_tokenizer(slow)("a <0x0A>")["input_ids"] == slow.encode("a <0x0A>")


@given(text=st.text("abtehmn ▁é日\n1", max_size=60))
@settings(max_examples=60)
def test_of_any_text_of_few_characters(both, text):
    slow, fast = both
    assert fast(text)["input_ids"] == slow.encode(text)


def test_marks(both):
    slow, fast = both
    assert (fast.eos_token_id, fast.pad_token_id, fast.bos_token_id) == (slow.eos_id, 2, None)
    assert len(fast) == slow.vocab_size
    assert fast(["the cat", "a"], padding=True)["attention_mask"][1][0] == 0  # on the left
    assert fast("the</s>")["input_ids"][-1] == slow.eos_id != slow.encode("the</s>")[-1]


def test_books(shared):
    """A million characters of real text, in pieces."""
    slow = SentencePieceTokenizer(shared / "data" / "books-bpe-16k.model")
    fast, seen = fast_tokenizer(slow), 0
    with lzma.open(shared / "data" / "books-valid.jsonl.xz", "rt") as stream:
        for line in stream:
            text = json.loads(line)["text"]
            for at in range(0, min(len(text), 100_000), 10_000):
                piece = text[at : at + 10_000]
                ids = slow.encode(piece)
                assert fast(piece)["input_ids"] == ids
                assert fast.decode(ids) == slow.decode(ids)
                seen += len(piece)
            if seen > 1_000_000:
                break
    assert seen > 500_000
