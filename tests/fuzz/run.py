"""Hand one input to a target, and say what became of it."""

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import megatron_ngpt
from tests.fuzz.target import OURS, Target

PACKAGE = str(Path(megatron_ngpt.__file__).parent)
SECONDS = 5.0
"""Of processor time that an input may take."""


class TooSlow(Exception):
    """An input took longer."""


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Raises TooSlow in whatever takes longer."""

    def end(_number: int, _frame: Any) -> None:
        raise TooSlow(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def outcome(target: Target, content: bytes) -> str:
    """ "read", or the class of our own error.

    Raises:
        Exception: any other, which is a fault of the reader.
    """
    try:
        with limited():
            target.read(content)
    except OURS as err:
        return type(err).__name__
    return "read"


@dataclass
class Coverage:
    """Lines of this package that inputs reached."""

    lines: set[tuple[str, int]] = field(default_factory=set)

    def __enter__(self) -> "Coverage":
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _value: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def _line(self, frame: FrameType, _event: str, _value: Any) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line

    def report(self) -> Iterator[tuple[str, int, int]]:
        """Module, lines inside of functions that were reached, and how many it has."""
        for path in sorted({path for path, _ in self.lines}):
            code = compile(Path(path).read_text(encoding="utf-8"), path, "exec")
            whole = {line for inner in _functions(code) for line in _lines(inner)}
            reached = {line for file, line in self.lines if file == path} & whole
            yield str(Path(path).relative_to(PACKAGE)), len(reached), len(whole)


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _functions(constant)


def _lines(code: CodeType) -> Iterator[int]:
    first = code.co_firstlineno
    return (line for _, _, line in code.co_lines() if line is not None and line > first)


def fuzz(target: Target, inputs: int, seed: int, coverage: Coverage) -> Counter[str]:
    """Inputs made of seeds, and of those that reached new lines; how many ended how.

    Raises:
        Exception: the first that is not our own, with the input as a note.
    """
    chance, corpus, counts = random.Random(seed), list(target.seeds), Counter[str]()
    for content in target.seeds:
        with coverage:
            outcome(target, content)
    began = time.monotonic()
    for _ in range(inputs):
        content = target.mutate(chance.choice(corpus[-200:]), chance)
        known = len(coverage.lines)
        try:
            with coverage:
                counts[outcome(target, content)] += 1
        except BaseException as err:
            err.args = (*err.args, f"input: {content[:600]!r}")
            raise
        if len(coverage.lines) > known and len(content) < 20_000:
            corpus.append(content)
    counts["milliseconds"] = int(1000 * (time.monotonic() - began))
    return counts
