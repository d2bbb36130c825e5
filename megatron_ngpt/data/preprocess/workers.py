"""Several processes of one machine that encode shards, each drawing the next when it is ready."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

from megatron_ngpt.data.preprocess.encode import ShardEncoder
from megatron_ngpt.data.preprocess.job import PreprocessJob
from megatron_ngpt.data.preprocess.parts import Parts
from megatron_ngpt.data.preprocess.plan import Shard

_POLL = 0.2


@dataclass(frozen=True)
class _Shared:
    """What the processes and their parent have in common."""

    totals: Any
    """Bytes, documents and tokens so far."""
    failures: Any
    """Exceptions."""
    parent: int


def encode_in_processes(
    job: PreprocessJob,
    parts: Parts,
    threads: int,
    shards: Sequence[Shard],
    attempt: str,
    watch: Callable[[int, int, int], object],
) -> None:
    """Encode shards in ``job.processes`` processes of ``threads`` threads; see ``Parts.draw``.

    Raises:
        Exception: what one of them raises; the others stop before their next shard.
        RuntimeError: one of them was killed.
    """
    context = get_context("spawn")
    shared = _Shared(context.Array("q", 3), context.SimpleQueue(), os.getpid())
    processes = [
        context.Process(target=_work, args=(job, parts, threads, shards, attempt, shared))
        for _ in range(min(job.processes, len(shards)))
    ]
    try:
        for process in processes:
            process.start()
        _follow(processes, shared, watch)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()


def _follow(
    processes: Sequence[Any], shared: _Shared, watch: Callable[[int, int, int], object]
) -> None:
    running, seen = list(processes), [0, 0, 0]
    while running:
        wait([process.sentinel for process in running], _POLL)
        now = list(shared.totals)
        watch(*(a - b for a, b in zip(now, seen, strict=True)))
        seen = now
        for process in running:
            if process.exitcode and not shared.failures.empty():
                raise shared.failures.get()
            if process.exitcode:
                raise RuntimeError(
                    f"a process that encodes ended with code {process.exitcode}; where memory was "
                    "short give fewer --processes or --workers; the same command goes on"
                )
        running = [process for process in running if process.is_alive()]


def _work(
    job: PreprocessJob,
    parts: Parts,
    threads: int,
    shards: Sequence[Shard],
    attempt: str,
    shared: _Shared,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides

    def watch(*counts: int) -> None:
        if os.getppid() != shared.parent:
            os._exit(1)
        with shared.totals.get_lock():
            for index, count in enumerate(counts):
                shared.totals[index] += count

    try:
        ShardEncoder(job, parts, threads).run(parts.draw(shards, attempt), watch)
    except Exception as err:
        shared.failures.put(err)
        os._exit(1)
