"""Which token ends a document."""

from __future__ import annotations

from dataclasses import replace

from megatron_ngpt.config import Config
from megatron_ngpt.data.bulk import load_tokenizer


def with_eod(config: Config) -> Config:
    """The configuration with ``data.eod`` filled in from the tokenizer where documents need it.

    It stays unknown without a tokenizer, or with one that has no end-of-sequence token: then
    documents end where the .idx says, and nowhere else.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: it is none.
    """
    data = config.data
    if not data.document_mask or data.eod >= 0 or not data.tokenizer:
        return config
    eos_id = load_tokenizer(data.tokenizer).eos_id
    return config if eos_id is None else replace(config, data=replace(data, eod=eos_id))
