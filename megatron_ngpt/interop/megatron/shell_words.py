"""A shell script as statements: what ends where, nothing expanded and nothing run.

What launch scripts are made of is understood: quotes, comments, continued lines, arrays,
``$(...)``, ``${...}`` and here-documents, which are left out. The grammar is POSIX.1-2017,
chapter 2, with bash's arrays and ``[[``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field

_OPERATORS = ("&&", "||", ";;", "\n", ";", "|", "&", "(", ")")
_ARRAY = re.compile(r"[A-Za-z_]\w*\+?=$")
_REDIRECT = re.compile(r"(?:\d+|&)?(?:>>|>\||>&|>|<<-|<<<|<<|<&|<)")
_BLANKS = re.compile(r"(?:[ \t]|\\\n|(?<![^\s;|&()])#[^\n]*)+")
_CLOSING = {"(": ")", "{": "}"}


@dataclass
class Statement:
    """One command, or one piece of a compound one."""

    line: int
    """Where it begins, from 1."""

    words: list[str] = field(default_factory=list)
    """As written, quotes included."""

    arrays: dict[int, list[str]] = field(default_factory=dict)
    """Elements of the words that end in ``=(``, by their place."""

    end: str = "\n"
    """The operator behind it."""


class Lexer:
    """Cuts a script into statements."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.starts = [0, *(found.end() for found in re.finditer("\n", self.text))]
        self.at = 0
        self.heredocs: list[str] = []

    def statements(self) -> list[Statement]:
        """All of them, in order.

        Raises:
            ValueError: a quote or bracket is never closed, with the line of its beginning.
        """
        found: list[Statement] = []
        current = Statement(1)
        while self._blanks() or self.at < len(self.text):
            if self.at >= len(self.text):
                break
            operator = self._operator()
            if operator:
                current.end = operator
                if current.words or operator == ";;":
                    found.append(current)
                current = Statement(self._line())
            elif not self._redirect():
                current.line = current.line if current.words else self._line()
                self._word_into(current)
        return [*found, current] if current.words else found

    def _line(self) -> int:
        return bisect_right(self.starts, self.at)

    def _blanks(self) -> bool:
        """Go past blanks, continued lines and comments; whether there were any."""
        found = _BLANKS.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return bool(found)

    def _operator(self) -> str:
        for operator in _OPERATORS:
            if self.text.startswith(operator, self.at):
                if operator == "&" and self.text.startswith("&>", self.at):
                    return ""
                self.at += len(operator)
                if operator == "\n":
                    self._skip_heredocs()
                return operator
        return ""

    def _redirect(self) -> bool:
        """Go past ``> FILE`` and the like, and remember a here-document."""
        found = _REDIRECT.match(self.text, self.at)
        if not found:
            return False
        self.at = found.end()
        self._blanks()
        target = self._word()
        if found[0].endswith(("<<", "<<-")):
            self.heredocs.append(re.sub(r"[\\'\"]", "", target))
        return True

    def _skip_heredocs(self) -> None:
        for mark in self.heredocs:
            end = re.compile(rf"^\t*{re.escape(mark)}$", re.M).search(self.text, self.at)
            self.at = end.end() if end else len(self.text)
        self.heredocs = []

    def _word_into(self, statement: Statement) -> None:
        word = self._word()
        if _ARRAY.fullmatch(word) and self.text.startswith("(", self.at):
            self.at += 1
            statement.arrays[len(statement.words)] = self._elements()
            word += "("
        statement.words.append(word)

    def _elements(self) -> list[str]:
        begun = self._line()
        found: list[str] = []
        while True:
            while self._blanks() or self.text.startswith("\n", self.at):
                self.at += self.text.startswith("\n", self.at)
            if self.at >= len(self.text):
                raise ValueError(f"line {begun}: the array that begins here has no closing bracket")
            if self.text[self.at] == ")":
                self.at += 1
                return found
            before = self.at
            found.append(self._word())
            if self.at == before:
                raise ValueError(f"line {self._line()}: {self.text[self.at]!r} inside of an array")

    def _word(self) -> str:
        """Up to the next blank or operator outside of quotes and brackets."""
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in " \t\n;|&()<>":
            if self.text.startswith("\\\n", self.at):
                break
            self._piece()
        return self.text[start : self.at]

    def _piece(self) -> None:
        letter = self.text[self.at]
        if letter in "'\"`":
            self._quoted(letter)
        elif letter == "\\":
            self.at += 2
        elif letter == "$" and self.text[self.at + 1 : self.at + 2] in _CLOSING:
            self.at += 1
            self._bracketed()
        else:
            self.at += 1

    def _quoted(self, quote: str) -> None:
        begun = self._line()
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != quote:
            if quote == '"' and self.text.startswith(("$(", "${"), self.at):
                self.at += 1
                self._bracketed()
            else:
                self.at += 2 if self.text[self.at] == "\\" and quote != "'" else 1
        if self.at >= len(self.text):
            raise ValueError(f"line {begun}: the {quote} that begins here is never closed")
        self.at += 1

    def _bracketed(self) -> None:
        """From ``(`` or ``{`` to its partner."""
        begun, opening = self._line(), self.text[self.at]
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != _CLOSING[opening]:
            if self.text[self.at] == opening:
                self._bracketed()
            elif self.text[self.at] in "'\"":
                self._quoted(self.text[self.at])
            else:
                self.at += 1
        if self.at >= len(self.text):
            raise ValueError(f"line {begun}: the {opening} that begins here is never closed")
        self.at += 1
