"""Texts that spell out a token which is more than text, such as ``<|endoftext|>``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from megatron_ngpt.data.bulk import Tokenizer

Choice: TypeAlias = Literal["keep", "plain", "refuse"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
REASON = "special token"


class SpecialText:
    """Finds documents that hold such a token although nobody put it there as one.

    Args:
        tokenizer: from which the encoder is made afterwards: "plain" changes it.
        choice: "keep" lets the text become the token's id, as the library does it; "plain" makes it
            letters like others; "refuse" does not take the document.

    Raises:
        ValueError: "plain" with a tokenizer that cannot.
    """

    def __init__(self, tokenizer: Tokenizer, choice: Choice) -> None:
        self._names = tokenizer.special_texts()
        self._ids = np.array(sorted(self._names), np.int64)
        self._plain, self.refused = choice == "plain", choice == "refuse"
        if self._plain and self._names:
            tokenizer.take_special_as_text()

    def within(self, texts: Sequence[bytes], ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Which documents of a batch do: bool[documents]; see ``BulkEncoder`` for the arguments."""
        if not self._names:
            return np.zeros(len(texts), bool)
        if self._plain:
            names = [name.encode() for name in self._names.values()]
            return np.array([any(name in text for name in names) for text in texts], bool)
        hits = np.repeat(np.arange(len(texts)), lengths)[np.isin(ids, self._ids)]
        return np.bincount(hits, minlength=len(texts)) > 0

    def anywhere(self, text: Iterable[bytes], ids: Iterable[np.ndarray]) -> bool:
        """Whether one long document does; it and its ids come in parts."""
        if not self._names:
            return False
        if self._plain:
            names = [name.encode() for name in self._names.values()]
            return any(
                name in part for part in _overlapping(text, max(map(len, names))) for name in names
            )
        return any(np.isin(part, self._ids).any() for part in ids)

    def detail(self) -> str:
        """What a refusal says."""
        some = sorted(self._names.values())
        return (
            f"{' or '.join(some[:3])}{' or another' if len(some) > 3 else ''} is written out in it"
        )


def _overlapping(parts: Iterable[bytes], length: int) -> Iterator[bytes]:
    """Parts such that ``length`` bytes are never cut in two."""
    tail = b""
    for part in parts:
        yield tail + part
        tail = (tail + part)[1 - length :] if length > 1 else b""
