"""Flat token files: those of nanoGPT, llm.c and modded-nanogpt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_ngpt.data.flat_formats import layout_of
from megatron_ngpt.data.indexed.format import pair
from megatron_ngpt.data.indexed.mapping import map_file


class FlatDataset:
    """Little-endian ids, one after another: uint16 and nothing else, as of nanoGPT's prepare.py,
    or after the header of llm.c and modded-nanogpt, which tells their type and number.

    Nothing says where its documents end, so it counts as one.

    Attributes:
        prefix: the file's path, with its ``.bin``.
        files: the file alone.
        dtype: type of one token.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is half of a pair, or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.prefix = str(path)
        file, (_, idx) = Path(path), pair(self.prefix.removesuffix(".bin"))
        self.files = (file,)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; name a pair without .bin or .idx")
        if idx.exists():
            raise ValueError(f"{file} belongs to {idx}: name the pair without .bin or .idx")
        content = map_file(file)
        layout = layout_of(file, content)
        self.dtype = layout.dtype
        self._tokens = content[layout.start :].view(self.dtype)

    @property
    def document_count(self) -> int:
        """1: where documents end is not known."""
        return 1

    @property
    def token_count(self) -> int:
        """N, number of tokens in the file."""
        return len(self._tokens)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop): a read-only view."""
        assert 0 <= start <= stop <= self.token_count, (start, stop, self.token_count)
        return self._tokens[start:stop]

    def document_ends(self, start: int, stop: int) -> np.ndarray:
        """The last token where it is one of [start, stop), counted from start: i64[0 or 1]."""
        last = self.token_count - 1
        return np.array([last - start] if start <= last < stop else [], np.int64)

    def document_start(self, number: int) -> int:
        """Tokens before document 0, or after it."""
        assert number in (0, 1), number
        return number * self.token_count
