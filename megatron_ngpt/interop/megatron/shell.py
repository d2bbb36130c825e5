"""The command that a launch script would run, found without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from megatron_ngpt.interop.megatron.shell_values import Values, fields, holds, joined
from megatron_ngpt.interop.megatron.shell_words import Lexer, Statement

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.S)
_DECLARING = ("export", "local", "declare", "readonly", "typeset")
_TELLING = ("echo", "printf", "cat", "mkdir", "cd", "rm", "set", "exit", "shift", "return")


@dataclass
class Script:
    """What reading a script has found."""

    words: list[str] = field(default_factory=list)
    """The command with the most ``--options``, expanded where variables are known."""

    remarks: list[str] = field(default_factory=list)
    """What was left out, each with its line."""


@dataclass
class _Frame:
    """An ``if``, ``case`` or loop that is being read."""

    kind: str
    active: bool
    """Whether the lines here are run."""

    outer: bool
    """Whether the whole of it is."""

    taken: bool = False
    """Whether one of the branches was."""

    subject: str = ""
    """What ``case`` compares."""

    at_pattern: bool = False
    known: bool | None = False
    joint: str = ""
    """The condition so far, and the operator behind it."""


class _Reader:
    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given
        self.values: Values = dict(given)
        self.frames: list[_Frame] = []
        self.commands: list[list[str]] = []
        self.remarks: list[str] = []
        self.last: bool | None = True
        self.joint = ""

    @property
    def active(self) -> bool:
        return all(frame.active for frame in self.frames)

    def read(self, statement: Statement) -> None:
        """Take one statement into account."""
        words, arrays = statement.words, statement.arrays
        while words and self._control(words[0], statement):
            words = words[1:]
            arrays = {place - 1: array for place, array in arrays.items()}
            if statement.words[0] in ("case", "for", "while", "until", "select", "esac"):
                return
            statement = Statement(statement.line, words, arrays, statement.end)
        if self._pattern(statement) or not words:
            return
        if self.frames and self.frames[-1].kind == "condition":
            self._condition(statement)
        elif self.active and self._follows():
            self._run(statement)
        self.joint = statement.end

    def _follows(self) -> bool:
        """Whether what stands before ``&&`` or ``||`` lets this be run."""
        if self.joint not in ("&&", "||"):
            return True
        return self.last is (self.joint == "&&")

    def _control(self, word: str, statement: Statement) -> bool:
        """Whether the first word belongs to the language, not to a command."""
        if word == "if":
            self.frames.append(_Frame("condition", False, self.active))
        elif word in ("then", "elif", "else", "fi"):
            self._branch(word, statement)
        elif word in ("case",):
            subject = joined(statement.words[1], self.values) if len(statement.words) > 1 else ""
            self.frames.append(_Frame("case", False, self.active, False, subject, True))
        elif word in ("for", "while", "until", "select"):
            if self.active:
                self._remark(statement, "a loop is not run: what it does to arguments is left out")
            self.frames.append(_Frame("loop", False, self.active))
        elif word in ("done", "esac"):
            if self.frames:
                self.frames.pop()
        else:
            return word in ("do", "{", "}", "function")
        return True

    def _branch(self, word: str, statement: Statement) -> None:
        if not self.frames:
            raise ValueError(f"line {statement.line}: {word} without an if before it")
        frame = self.frames[-1]
        if word == "fi":
            self.frames.pop()
        elif word == "then":
            frame.kind, frame.active = "if", frame.outer and not frame.taken and bool(frame.known)
            frame.taken = frame.taken or frame.active
        elif word == "else":
            frame.active = frame.outer and not frame.taken
        else:
            frame.kind, frame.active, frame.known, frame.joint = "condition", False, False, ""

    def _condition(self, statement: Statement) -> None:
        frame = self.frames[-1]
        now = holds(statement.words, self.values)
        if now is None and frame.outer and not frame.taken:
            told = " ".join(statement.words)
            self._remark(statement, f"{told}: not known from here, taken for false")
        if frame.joint == "||":
            now = bool(frame.known) or now
        elif frame.joint == "&&":
            now = now if frame.known else False
        frame.known, frame.joint = now, statement.end

    def _pattern(self, statement: Statement) -> bool:
        """Whether this is ``"800M")`` of a case, or what is left of one."""
        frame = self.frames[-1] if self.frames else None
        if frame is None or frame.kind != "case":
            return False
        if frame.at_pattern and statement.words:
            fits = fnmatchcase(frame.subject, joined(statement.words[-1], self.values))
            frame.active = frame.active or (frame.outer and not frame.taken and fits)
            if statement.end == ")":
                frame.taken, frame.at_pattern = frame.taken or frame.active, False
            return True
        if statement.end == ";;":
            if self.active and statement.words:
                self._run(statement)
            frame.at_pattern, frame.active = True, False
            return True
        return False

    def _run(self, statement: Statement) -> None:
        words = list(statement.words)
        if words[0] in _DECLARING:
            words[0] = ""
        place = 0
        while place < len(words) and (not words[place] or self._assign(place, words, statement)):
            place += 1
        rest = [one for word in words[place:] for one in fields(word, self.values)]
        if not rest:
            return
        if rest[0] in ("[", "[[", "test"):
            self.last = holds(words[place:], self.values)
        elif rest[0] in ("source", "."):
            self._remark(statement, f"{' '.join(rest)}: another script, which is not read")
        elif rest[0] == "unset":
            for name in rest[1:]:
                self.values.pop(name, None)
        elif rest[0] not in _TELLING:
            self.commands.append(_resplit(rest))

    def _assign(self, place: int, words: list[str], statement: Statement) -> bool:
        found = _ASSIGNMENT.fullmatch(words[place])
        if not found:
            return False
        name, more = found[1], bool(found[2])
        if name in self.given:
            return True  # --set goes before what the script says
        before = self.values.get(name)
        if place in statement.arrays:
            array = [f for word in statement.arrays[place] for f in fields(word, self.values)]
            self.values[name] = [*before, *array] if more and isinstance(before, list) else array
        else:
            text = joined(found[3], self.values)
            self.values[name] = f"{before}{text}" if more and isinstance(before, str) else text
        return True

    def _remark(self, statement: Statement, text: str) -> None:
        self.remarks.append(f"line {statement.line}: {text}")


def _resplit(words: list[str]) -> list[str]:
    """Words that hold whole command lines, as of ``bash -c "..."``, taken apart."""
    found: list[str] = []
    for word in (word.replace("\\\n", " ") for word in words):
        if "--" in word and re.search(r"\s", word.strip()):
            try:
                found += shlex.split(word)
            except ValueError:
                found += word.split()
        else:
            found.append(word)
    return found


def _options(words: list[str]) -> int:
    return sum(word.startswith("--") for word in words)


def read_script(text: str, given: Mapping[str, str] | None = None) -> Script:
    """The command in a launch script that has the most options.

    A script that only sets variables, as some keep a model's shape in a file, gives the options of
    all its variables.

    Args:
        text: of the script.
        given: variables that are known from outside, ``1`` for the first argument.

    Raises:
        ValueError: it is no shell script, or there is not one option in it.
    """
    reader = _Reader(given or {})
    for statement in Lexer(text).statements():
        reader.read(statement)
    best = max(reader.commands, key=_options, default=[])
    if not _options(best):
        lists = [_resplit(v if isinstance(v, list) else [v]) for v in reader.values.values()]
        best = [word for words in lists if _options(words) for word in words]
        if best:
            reader.remarks.append("no command with options: those of all variables were taken")
    if not _options(best):
        raise ValueError("no command with --options is in it: is it a Megatron launch script?")
    return Script(best, reader.remarks)
