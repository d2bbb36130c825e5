"""Progress of a preprocessing job: a bar in a terminal, lines in a log."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Context manager that shows bytes, bytes per second, tokens per second and time left.

    Args:
        total: bytes there are to read; 0 where that is not known.
        log_interval: documents between lines where stderr is no terminal.
        show: whether to show anything.
    """

    def __init__(self, total: int, log_interval: int, show: bool = True) -> None:
        self._total, self._log_interval, self._show = total, log_interval, show
        self._size = self._documents = self._tokens = 0
        self._start, self._next = time.monotonic(), log_interval

    def __enter__(self) -> Progress:
        # Asked by itself, tqdm shows nothing in a terminal of unknown size, as under `script`.
        columns, rows = shutil.get_terminal_size()
        self._bar = tqdm(
            total=self._total or None,
            unit="B",
            unit_scale=True,
            disable=None if self._show else True,
            ncols=columns,
            nrows=rows,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def add(self, size: int, documents: int, tokens: int) -> None:
        """Count bytes, documents and tokens, and show all so far."""
        self._size += size
        self._documents += documents
        self._tokens += tokens
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = f"{self._tokens / seconds / 1e6:.2f}M tokens/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(size)
        elif self._show and self._documents >= self._next:
            self._next = (self._documents // self._log_interval + 1) * self._log_interval
            print(self._line(seconds, speed), file=sys.stderr, flush=True)

    def _line(self, seconds: float, speed: str) -> str:
        of, left = "", ""
        if self._total:
            of = f" of {self._total / 1e6:.1f}"
            rest = max(self._total - self._size, 0) * seconds / max(self._size, 1)
            left = f", {rest:.0f} s left"
        return (
            f"{self._documents} documents, {self._size / 1e6:.1f}{of} MB, "
            f"{self._size / seconds / 1e6:.1f} MB/s, {speed}{left}"
        )
