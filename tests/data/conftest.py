"""Small corpora for the tests of the data room."""

import io
import random
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from megatron_ngpt.data.corpus import TokenRange
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory) -> Callable[..., IndexedDataset]:
    """Write and open a pair with documents of the given lengths; token i is i by default."""

    def make(lengths: Sequence[int], tokens=None, dtype="int32") -> IndexedDataset:
        prefix = tmp_path_factory.mktemp("corpus") / "corpus_text_document"
        with IndexedWriter(prefix, dtype) as writer:
            writer.add_documents(np.arange(sum(lengths)) if tokens is None else tokens, lengths)
        return IndexedDataset(prefix)

    return make


@pytest.fixture(scope="session")
def make_corpus(make_dataset) -> Callable[[int], TokenRange]:
    """A corpus of that many tokens; token i is i."""
    return lambda token_count: TokenRange(make_dataset([token_count]), 0, token_count)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A few documents of real text: source files of the standard library."""
    return [Path(module.__file__).read_text(encoding="utf-8") for module in (textwrap, io, re)]


@pytest.fixture(scope="session")
def make_tokenizer(texts, tmp_path_factory) -> Callable[..., SentencePieceTokenizer]:
    """Train a BPE model with byte fallback on ``texts``; options are sentencepiece's own."""
    made: dict[str, SentencePieceTokenizer] = {}

    def make(**options) -> SentencePieceTokenizer:
        name = repr(sorted(options.items()))
        if name not in made:
            made[name] = train(options)
        return made[name]

    def train(options) -> SentencePieceTokenizer:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines()),
            model_writer=model,
            minloglevel=2,
            **{"vocab_size": 600, "model_type": "bpe", "byte_fallback": True} | options,
        )
        path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
        path.write_bytes(model.getvalue())
        return SentencePieceTokenizer(path)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> SentencePieceTokenizer:
    """A small model that keeps every character as it is."""
    return make_tokenizer(normalization_rule_name="identity", remove_extra_whitespaces=False)


# Pieces that look like text, white space of all kinds, what Unicode joins, expands or deletes.
_TROUBLE = (
    *("a", "A", "xy", "import", "self.", "0123", "def f(x):\n    return x", "z" * 40, "=" * 9),
    *("<s>", "</s>", "<unk>", "<0x41>", "\0", "\x01", "\x7f", "\u2581", "\u2581\u2581"),
    *(" ", "    ", "\n", "\r\n", "\t", "\f", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "\u200b"),
    *(
        "e\u0301",
        "\u0301",
        "\ufb01",
        "\xbd",
        "\u1100",
        "\u1161",
        "\uff76",
        "\uff9e",
        "\ufdfa",
        "\xa8",
    ),
    *("\u2026", "\ufeff", "\u6f22\u5b57", "\U0001f469\u200d\U0001f467", "\ufffd", "\uffff"),
)


@pytest.fixture(scope="session")
def odd_texts() -> list[str]:
    """3,000 texts of troublesome parts and random characters, and runs of one part."""
    rng = random.Random(0)

    def part() -> str:
        code = rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x10F800)])
        anything = chr(code if code < 0xD800 else code + 0x800)
        return rng.choice([anything, rng.choice(_TROUBLE), rng.choice(_TROUBLE)])

    mixed = ["".join(part() for _ in range(rng.randrange(30))) for _ in range(3000)]
    return [*mixed, *(part * count for part in _TROUBLE for count in (1, 2, 3, 7, 31))]
