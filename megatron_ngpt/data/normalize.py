"""sentencepiece's text normalisation: exact always, fast where a text hardly needs any.

A model's normalisation rewrites characters by longest-match rules (``nmt_nfkc`` has 225,000), then
strips and collapses spaces. sentencepiece does that at about 60 MB/s in one thread, less than the
encoding that follows. But most documents hold no character that a rule could join with its
neighbour, and few that a rule rewrites at all: whole-buffer operations do for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from megatron_ngpt.data.charsmap import CharacterRules

# A byte that UTF-8 never holds, between short texts that are normalised together.
_BETWEEN = b"\xff"
_GROUP_BYTES = 1 << 16
_UNTOUCHED = bytes(range(128)) + _BETWEEN
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
            plain = self._rewrite(text)
            text = self._apply_rules(text.decode()).encode() if plain is None else plain
        return self._finish(_collapse(text) if self._trim_spaces else text)

    def many(self, texts: Sequence[bytes]) -> list[bytes]:
        """The normalised texts; short ones are done together, which saves most of their time."""
        done: list[bytes] = []
        for group in _groups(texts):
            joined = _BETWEEN.join(group)
            plain = self._rewrite(joined) if self._has_rules and len(group) > 1 else joined
            if plain is None or len(group) == 1:
                done += map(self, group)
                continue
            plain = _collapse(plain) if self._trim_spaces else plain
            done += map(self._finish, plain.split(_BETWEEN))
        return done

    def _rewrite(self, text: bytes) -> bytes | None:
        """With the rules applied, None where that takes more than replacing few characters."""
        touched = self._touched.intersection(text.translate(None, _UNTOUCHED).decode())
        if self._never_plain or len(touched) > _FEW or not touched.isdisjoint(self._difficult):
            return None
        text = text.translate(self._table, self._deleted)
        for char in touched:
            text = text.replace(char.encode(), self._single[char].encode())
        return text

    def _finish(self, text: bytes) -> bytes:
        """Strip and prefix a text that is normalised otherwise."""
        if not self._trim_spaces:
            return b" " + text if self._add_prefix else text
        text = text.strip(b" ")
        while text.endswith((b" ", _ESCAPED_SPACE)):
            text = text.rstrip(b" ").removesuffix(_ESCAPED_SPACE)
        return b" " + text if self._add_prefix and text else text


def _difficult(rules: CharacterRules) -> set[str]:
    """Characters without which every match is one character, and no match depends on another."""
    single = rules.single
    chained = {source for source, text in single.items() if not single.keys().isdisjoint(text)}
    # The table for ASCII holds one ASCII character each.
    unfit = {
        s for s, text in single.items() if s.isascii() and not (text.isascii() and len(text) < 2)
    }
    return rules.followers | chained | unfit


def _collapse(text: bytes) -> bytes:
    """One space for each run of them."""
    if b"  " not in text:
        return text
    codes = np.frombuffer(text, np.uint8)
    repeated = np.zeros(codes.size, bool)
    repeated[1:] = (codes[1:] == _SPACE) & (codes[:-1] == _SPACE)
    return codes[~repeated].tobytes()


def _groups(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Consecutive texts that are short enough to be joined; an empty or a long one stands alone."""
    group: list[bytes] = []
    size = 0
    for text in texts:
        if group and (not text or size + len(text) > _GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text) or _GROUP_BYTES
    if group:
        yield group
