from dataclasses import replace

import pytest

from megatron_ngpt.config import Config, DataConfig
from megatron_ngpt.data.documents import with_eod
from megatron_ngpt.data.tokenizer import train_tokenizer


def config_of(**data) -> Config:
    return Config(data=DataConfig(**data))


def test_the_tokenizer_tells_which_id_ends_a_document(texts, tmp_path):
    path = str(tmp_path / "tok.model")
    train_tokenizer(texts, path, vocab_size=400)
    config = config_of(document_mask=True, tokenizer=path)
    assert with_eod(config) == replace(config, data=replace(config.data, eod=2))


@pytest.mark.parametrize(
    "data", [{"document_mask": True, "eod": 5}, {"tokenizer": "none"}, {"document_mask": True}]
)
def test_it_is_not_asked_when_nobody_needs_it(data):
    assert with_eod(config_of(**data)) == config_of(**data)


def test_a_missing_tokenizer_is_named():
    with pytest.raises(FileNotFoundError, match=r"none\.model"):
        with_eod(config_of(document_mask=True, tokenizer="none.model"))
