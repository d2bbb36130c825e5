"""A start of the tiny run: its ranks as processes, joined as a launcher would join them."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_ngpt.soak.bomb import Bomb, Faults, set_trap
from megatron_ngpt.study.place import PRETRAIN

PRELOADED = (
    *("megatron_ngpt.train.loop", "megatron_ngpt.train.agree", "megatron_ngpt.soak.start"),
    *("torch.distributed.checkpoint", "deepspeed.runtime.zero.muon.muon_optimizer"),
)
"""Imported once, so that a start costs no seconds of imports."""


class Start:
    """Ranks that run.

    Args:
        words: command line of pretrain_ngpt.py.
        bombs: of each rank.
        faults: around all of them.
        folder: their output goes to ``output.txt`` there, what bombs say to ``kills.txt``.
    """

    def __init__(
        self, words: Sequence[str], bombs: Sequence[Bomb], faults: Faults, folder: Path
    ) -> None:
        import torch.distributed as dist

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.ranks: list[Any] = []
        for rank, bomb in enumerate(bombs):
            place = (rank, len(bombs), self.store.port)
            job = (list(words), place, bomb, faults, str(folder))
            self.ranks.append(context.Process(target=_rank, args=job))
        for process in self.ranks:
            process.start()
        # not by numbers, which may be another process's as soon as one has ended
        self.handles = [os.pidfd_open(process.pid) for process in self.ranks]

    def wait(self, grace: float, chance: random.Random, stop: float = 0.0) -> list[int]:
        """Exit code of every rank, once all have ended.

        Args:
            grace: seconds that the others have, after the first has ended badly, before they are
                killed as a launcher would do it.
            chance: draws which rank is stopped when.
            stop: chance per tenth of a second that a rank is stopped for a moment.
        """
        while any(process.is_alive() for process in self.ranks):
            if any(process.exitcode for process in self.ranks):
                self._join(grace)
                self.kill()
                break
            if chance.random() < stop:
                self._stop(chance)
            time.sleep(0.01 if not stop else 0.1)
        return [process.exitcode for process in self.ranks]

    def _join(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, end - time.monotonic()))

    def kill(self) -> None:
        """End all of them, by SIGKILL."""
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()
        while self.handles:
            os.close(self.handles.pop())

    def _stop(self, chance: random.Random) -> None:
        """SIGSTOP to one rank, SIGCONT a moment later."""
        handle = chance.choice(self.handles)
        with suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            time.sleep(chance.uniform(0.05, 0.5))
            signal.pidfd_send_signal(handle, signal.SIGCONT)


def _rank(
    words: list[str], place: tuple[int, int, int], bomb: Bomb, faults: Faults, folder: str
) -> None:
    """As if by ``python pretrain_ngpt.py`` under a launcher."""
    import torch

    from megatron_ngpt.mesh import launch

    output = os.open(Path(folder, "output.txt"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    gc.freeze()
    torch.set_num_threads(1)
    rank, world_size, port = place
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in found.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    set_trap(bomb, faults, Path(folder, "kills.txt"))
    sys.argv = [PRETRAIN.name, *words]
    spec = importlib.util.spec_from_file_location("pretrain_ngpt", PRETRAIN)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    launch.finish(program.run())
