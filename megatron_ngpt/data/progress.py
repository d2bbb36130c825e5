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
        total: bytes there are to read.
        log_interval: documents between lines where stderr is no terminal.
    """

    def __init__(self, total: int, log_interval: int) -> None:
        self._total, self._log_interval = total, log_interval
        self._start, self._next = time.monotonic(), log_interval

    def __enter__(self) -> Progress:
        # Asked by itself, tqdm shows nothing in a terminal of unknown size, as under `script`.
        columns, rows = shutil.get_terminal_size()
        self._bar = tqdm(
            total=self._total, unit="B", unit_scale=True, disable=None, ncols=columns, nrows=rows
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, size: int, documents: int, tokens: int) -> None:
        """Show the totals so far: bytes, documents and tokens."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = f"{tokens / seconds / 1e6:.2f}M tokens/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(size - self._bar.n)
        elif documents >= self._next:
            self._next = (documents // self._log_interval + 1) * self._log_interval
            left = max(self._total - size, 0) * seconds / max(size, 1)
            print(
                f"{documents} documents, {size / 1e6:.1f} of {self._total / 1e6:.1f} MB, "
                f"{size / seconds / 1e6:.1f} MB/s, {speed}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
