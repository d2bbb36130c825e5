"""sentencepiece's text normalisation: exact always, fast where a text hardly needs any.

A model's normalisation rewrites characters by longest-match rules (``nmt_nfkc`` has 225,000), then
strips and collapses spaces. sentencepiece does that at about 60 MB/s in one thread, less than the
encoding that follows. But most documents hold no character that a rule could join with its
neighbour, and few that a rule rewrites at all: whole-buffer operations do for them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megatron_ngpt.data.charsmap import CharacterRules

_ASCII = bytes(range(128))
_SPACE = ord(" ")
_ESCAPED_SPACE = "\u2581".encode()
# With more different characters to replace, one pass of sentencepiece is faster.
_FEW = 8


class TextNormalizer:
    """Normalises UTF-8 text as a SentencePiece model does, except that spaces stay spaces.

    Args:
        rules: the model's character rules; none for identity.
        apply_rules: sentencepiece's own application of these rules to any text.
        trim_spaces: strip spaces and collapse runs of them (``remove_extra_whitespaces``).
        add_prefix: begin with a space (``add_dummy_prefix``).

    Raises:
        ValueError: when a replacement holds two spaces in a row, which sentencepiece would keep.
    """

    def __init__(
        self,
        rules: CharacterRules,
        apply_rules: Callable[[str], str],
        trim_spaces: bool,
        add_prefix: bool,
    ) -> None:
        if rules.writes_spaces:
            raise ValueError("its normalisation writes several spaces in a row")
        self._has_rules, self._apply_rules = bool(rules.single or rules.followers), apply_rules
        self._trim_spaces, self._add_prefix = trim_spaces, add_prefix
        self._single = rules.single
        self._difficult = _difficult(rules)
        self._touched = self._difficult | {char for char in self._single if not char.isascii()}
        self._never_plain = any(char.isascii() for char in self._difficult)
        controls = {ord(c): text.encode() for c, text in self._single.items() if c.isascii()}
        self._deleted = bytes(code for code, text in controls.items() if not text)
        self._table = b"".join(controls.get(code) or bytes([code]) for code in range(256))

    def __call__(self, text: bytes) -> bytes:
        """The normalised text."""
        if not text:
            return text
        if self._has_rules:
            text = self._rewrite(text)
        if self._trim_spaces:
            text = _trim(text)
            return b" " + text if self._add_prefix and text else text
        return b" " + text if self._add_prefix else text

    def _rewrite(self, text: bytes) -> bytes:
        touched = self._touched.intersection(text.translate(None, _ASCII).decode())
        if self._never_plain or len(touched) > _FEW or not touched.isdisjoint(self._difficult):
            return self._apply_rules(text.decode()).encode()
        text = text.translate(self._table, self._deleted)
        for char in touched:
            text = text.replace(char.encode(), self._single[char].encode())
        return text


def _difficult(rules: CharacterRules) -> set[str]:
    """Characters without which every match is one character, and no match depends on another."""
    single = rules.single
    chained = {source for source, text in single.items() if not single.keys().isdisjoint(text)}
    # The table for ASCII holds one ASCII character each.
    unfit = {
        s for s, text in single.items() if s.isascii() and not (text.isascii() and len(text) < 2)
    }
    return rules.followers | chained | unfit


def _trim(text: bytes) -> bytes:
    """Collapse runs of spaces and strip both ends, at the end also escaped spaces."""
    if b"  " in text:
        codes = np.frombuffer(text, np.uint8)
        repeated = np.zeros(codes.size, bool)
        repeated[1:] = (codes[1:] == _SPACE) & (codes[:-1] == _SPACE)
        text = codes[~repeated].tobytes()
    text = text.strip(b" ")
    while text.endswith((b" ", _ESCAPED_SPACE)):
        text = text.rstrip(b" ").removesuffix(_ESCAPED_SPACE)
    return text
