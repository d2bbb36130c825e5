"""How long this process waits for others, measured where every collective on a CPU waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


class Waiting:
    """Adds up the seconds inside ``Work.wait``, as a context manager around some steps.

    All of torch.distributed's functions end there, also where DeepSpeed or a pipeline calls them.
    Calls of other threads do not count: checkpoints are written by one. On a GPU ``wait`` returns
    at once, so that nothing is learnt there.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.seconds = clock, 0.0

    def __enter__(self) -> Waiting:
        self.original, self.thread = dist.Work.wait, threading.get_ident()
        setattr(dist.Work, "wait", self._wrapped(self.original))  # noqa: B010, it is a C++ class's
        return self

    def __exit__(self, *_: object) -> None:
        setattr(dist.Work, "wait", self.original)  # noqa: B010

    def _wrapped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return original(work, *args, **kwargs)
            began = self.clock()
            try:
                return original(work, *args, **kwargs)
            finally:
                self.seconds += self.clock() - began

        return wait
