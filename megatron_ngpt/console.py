"""Output whose reader may go away: ``tools/job_status.py RUN | head``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

READER_GONE = 141
"""Exit code of a program that SIGPIPE ends, as a shell tells it."""


class _UntilReaderGone(io.TextIOWrapper):
    """Ends the program, quietly, when nobody reads it any more.

    By SystemExit, since tools that tell a user of an OSError would tell of this one, too.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            return self._end()

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._end()

    def _end(self) -> int:
        _discard(self)
        raise SystemExit(READER_GONE)


def tool(main: Callable[[], int]) -> int:
    """Exit code of a command-line tool, which ends quietly when its output has no reader left."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        sys.stdout = _UntilReaderGone(
            out.detach(),
            encoding=out.encoding,
            errors=out.errors,
            line_buffering=out.line_buffering,
        )
    try:
        code = main()
        sys.stdout.flush()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return code


def say(message: str, stream: TextIO | None = None) -> None:
    """Print at once; nothing happens when nobody reads it any more, so that a run goes on."""
    stream = stream or sys.stdout
    try:
        print(message, file=stream, flush=True)
    except OSError:
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """What is still in the stream's buffer, and all that comes, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
