"""sentencepiece's table of character rules, read from the model itself.

``SentencePieceNormalizer.decompile`` lists all rules, 225,000 of them with ``nmt_nfkc``, in 0.4 s
of processor time. What ``normalize`` needs is a small part, found here in a twentieth of that: most
rules share their ends, and the table is a graph of 45,000 nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_VALUE = 0x7FFFFFFF
_LABEL = 0x800000FF  # of a node that is a value the highest bit is set, so it equals no byte
_MOST = 1 << 22
"""Ways by one character that are followed; sentencepiece's own tables have 225,000 rules."""


class CharacterRules(NamedTuple):
    """What rules do to single characters, and which characters they join."""

    single: dict[str, str]
    """Replacement of each character that has a rule of its own."""

    followers: set[str]
    """Characters that come second or later in the source of some rule."""

    writes_spaces: bool
    """Whether a replacement may hold several spaces in a row."""


def read_rules(charsmap: bytes) -> CharacterRules:
    """Read a ``precompiled_charsmap``; an empty one has no rules.

    The format is sentencepiece's (``normalizer.cc``): u32 size, a double-array trie of that size
    (Darts-clone) of UTF-8 sources, then the replacements, each ended by a zero byte; a source's
    value is the byte at which its replacement starts.

    Raises:
        ValueError: it is none.
    """
    if not charsmap:
        return CharacterRules({}, set(), False)
    try:
        return _rules(charsmap, int.from_bytes(charsmap[:4], "little"))
    except IndexError as err:
        raise ValueError(f"the model's table of character rules is damaged: {err}") from err


def _rules(charsmap: bytes, size: int) -> CharacterRules:
    trie, texts = _Trie(charsmap[4 : 4 + size]), charsmap[4 + size :]
    codes, nodes = trie.characters(np.zeros(1, np.int64))
    single = {
        chr(code): texts[value : texts.index(b"\0", value)].decode()
        for code, value in zip(codes.tolist(), trie.values(nodes).tolist(), strict=True)
        if value >= 0
    }
    followers: set[str] = set()
    followed = np.zeros(size // 4, bool)  # rules share ends, damaged ones go in circles
    while (nodes := np.unique(nodes[~followed[nodes]])).size:
        followed[nodes] = True
        codes, nodes = trie.characters(nodes)
        followers.update(map(chr, np.unique(codes).tolist()))
    return CharacterRules(single, followers, b"  " in texts)


class _Trie:
    """A Darts-clone double array: node n's child by byte b is node ``base[n] ^ b``."""

    def __init__(self, content: bytes) -> None:
        self._units = np.frombuffer(content, "<u4").astype(np.int64)
        self._label = self._units & _LABEL
        offset = (self._units >> 10) << ((self._units & 0x200) >> 6)
        self._base = np.arange(self._units.size) ^ offset
        children = np.flatnonzero((self._label > 0) & (self._label < 256))
        bases = children ^ self._label[children]
        order = np.argsort(bases, kind="stable")
        self._children, self._bases = children[order], bases[order]

    def values(self, nodes: np.ndarray) -> np.ndarray:
        """i64[nodes], the value of each, -1 for one that has none."""
        has_value = (self._units[nodes] >> 8) & 1 == 1
        return np.where(has_value, self._units[self._base[nodes]] & _VALUE, -1)

    def characters(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All ways from some nodes by one character: its code point, and the node it leads to."""
        found = []
        codes, missing = np.zeros_like(nodes), np.zeros_like(nodes)
        while nodes.size:
            origin, nodes = self._next(nodes)
            byte, first = self._label[nodes], missing[origin] == 0
            more = np.searchsorted([0xC0, 0xE0, 0xF0], byte, "right")  # bytes after a first one
            missing = np.where(first, more, missing[origin] - 1)
            lead = np.where(more > 0, byte & (0x3F >> more), byte)
            codes = np.where(first, lead, codes[origin] << 6 | byte & 0x3F)
            whole = missing == 0
            found.append((codes[whole], nodes[whole]))
            codes, missing, nodes = codes[~whole], missing[~whole], nodes[~whole]
        codes, nodes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return codes, nodes

    def _next(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All children: the index of the parent in ``nodes``, and the child."""
        start, stop = (
            np.searchsorted(self._bases, self._base[nodes], side) for side in ("left", "right")
        )
        count = stop - start
        if count.sum() > _MOST:
            raise ValueError("the model's table of character rules has more than it can have")
        origin = np.repeat(np.arange(nodes.size), count)
        within = np.arange(origin.size) - np.repeat(np.cumsum(count) - count, count)
        return origin, self._children[start[origin] + within]
