"""Which token ends a document."""

from __future__ import annotations

from dataclasses import replace

from megatron_ngpt.config import Config
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer


def with_eod(config: Config) -> Config:
    """The configuration with ``data.eod`` filled in from the tokenizer where documents need it.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: it has no end-of-sequence token.
    """
    data = config.data
    if not data.document_mask or data.eod >= 0:
        return config
    eos_id = SentencePieceTokenizer(data.tokenizer).eos_id
    if eos_id is None:
        raise ValueError(
            f"data.document_mask: the tokenizer {data.tokenizer} has no end-of-sequence token: set "
            "data.eod to the id that ends a document in the corpus"
        )
    return replace(config, data=replace(data, eod=eos_id))
