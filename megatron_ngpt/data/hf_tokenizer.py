"""Hugging Face ``tokenizer.json`` files: text to ids and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ngpt.extras import require
from megatron_ngpt.plain_json import parse_object

# Asked for where no tokenizer_config.json names the token.
_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")


class HFTokenizer:
    """A ``tokenizer.json`` in use, with the interface of ``SentencePieceTokenizer``.

    Special tokens that a text spells out become their ids, as the library does it, unless
    ``take_special_as_text`` is called.

    Args:
        path: the file; a ``tokenizer_config.json`` beside it may name the token that ends a text.

    Attributes:
        path: the file.
        model: its content.
        vocab_size: the largest id and one.
        eos_id: id that ends a document, or None when none is known.

    Raises:
        FileNotFoundError: when there is no such file.
        ModuleNotFoundError: when tokenizers is not installed.
        ValueError: when it is no tokenizer.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"tokenizer {str(path)!r}: no such file")
        self.model = self.path.read_bytes()
        self.library: Any = self._load(self.model.decode(errors="replace"))
        ids = self.library.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise ValueError(f"tokenizer {str(self.path)!r}: its vocabulary is empty")
        self.vocab_size = 1 + max(ids)
        self.eos_id = self._end_id()

    def _load(self, content: str) -> Any:
        library = require("tokenizers", "preprocess", "tokenizer.json files")
        try:
            loaded = library.Tokenizer.from_str(content)
        except Exception as err:  # the library raises nothing more specific
            raise ValueError(f"tokenizer {str(self.path)!r}: no tokenizer.json ({err})") from err
        # The file may cut or fill what it encodes, which a corpus must not be.
        loaded.no_truncation()
        loaded.no_padding()
        return loaded

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin or end marks.

        Raises:
            ValueError: the text holds what has no token, and there is none for the unknown.
        """
        try:
            ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        except Exception as err:  # the library raises nothing more specific
            raise ValueError(f"tokenizer {str(self.path)!r} cannot encode a text: {err}") from err
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of any ids; special tokens and ids outside the vocabulary vanish."""
        known = [i for i in map(int, ids) if i < self.vocab_size]
        text: str = self.library.decode(known, skip_special_tokens=True)
        return text

    def special_texts(self) -> dict[int, str]:
        """Tokens with a meaning that a text can spell out, by id; the unknown token is none."""
        unknown = json.loads(self.model)["model"].get("unk_token")
        added = self.library.get_added_tokens_decoder()
        return {
            number: token.content
            for number, token in added.items()
            if number == self.eos_id or (token.special and token.content != unknown)
        }

    def take_special_as_text(self) -> None:
        """From now on a special token that a text spells out is text like other text."""
        content, marks = json.loads(self.model), self.special_texts()
        for token in content.get("added_tokens") or ():
            token["special"] = token["special"] or token["id"] in marks
        self.library = self._load(json.dumps(content))
        self.library.encode_special_tokens = True

    def marks(self) -> list[str]:
        """Tokens that a text which spells them out becomes whole, special ones among them."""
        return [token.content for token in self.library.get_added_tokens_decoder().values()]

    def has_pieces_across_spaces(self) -> bool:
        """Whether tokens are known to go on after a space; here only trying can tell."""
        return False

    def _end_id(self) -> int | None:
        config = self.path.with_name("tokenizer_config.json")
        names: Sequence[str] = _END_TOKENS
        if config.is_file():
            try:
                named = parse_object(config.read_bytes()).get("eos_token")
            except ValueError as err:
                raise ValueError(f"{config}: {err}") from err
            named = named.get("content") if isinstance(named, dict) else named
            if named and not isinstance(named, str):
                raise ValueError(f"{config}: eos_token is {named!r}, no token's text")
            names = [named] if named else names
        ids = (self.library.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)
