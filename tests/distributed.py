"""Run a function on N processes joined by gloo, on one machine and CPU.

Children are forked from one server that has already imported torch, DeepSpeed and what these import
at the first step, so that a launch costs milliseconds instead of seconds. The parent opens the
store at which they meet, as torchrun's agent does: no port can be taken in between.
"""

import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO, Any

import torch
import torch.distributed as dist

from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import Launch, finish, start
from megatron_ngpt.mesh.mesh import Mesh

CPU = torch.device("cpu")
# the server imports DeepSpeed, which then serves one kind of device: not the GPU that may be there
os.environ["DS_ACCELERATOR"] = "cpu"
SLOW_IMPORTS = [
    "pretrain_ngpt",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # comes with the first optimizer, and brings
    "deepspeed.runtime.zero.stage3",  # torch's compiler
]


def run(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 600) -> list:
    """What ``function(mesh, *args)`` returns on every rank, in the order of ranks.

    Function and arguments are pickled: a function at the top of a module.

    Raises:
        RuntimeError: a rank raised, died or took longer than ``timeout`` seconds; the message holds
            its traceback, or where it stood. All ranks have ended by then.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [_Rank.start(r, world_size, store.port, function, args) for r in range(world_size)]
    try:
        _collect(ranks, time.monotonic() + timeout)
    finally:
        for rank in ranks:
            rank.end()
    problems = [f"rank {n}: {rank.problem}" for n, rank in enumerate(ranks) if rank.problem]
    if problems:
        raise RuntimeError("\n".join(problems))
    return [rank.result for rank in ranks]


@dataclass
class _Rank:
    """One child process and what is known of its end."""

    process: Any
    answer: Connection
    output: IO[str]
    result: Any = None
    problem: str = ""
    done: bool = field(default=False)

    @classmethod
    def start(cls, rank: int, world_size: int, port: int, function: Callable, args: tuple):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(SLOW_IMPORTS)
        receive, send = context.Pipe(duplex=False)
        output = tempfile.NamedTemporaryFile("w+", prefix=f"rank{rank}-")  # noqa: SIM115
        launch = Launch(rank, world_size, rank, "127.0.0.1", port)
        job = pickle.dumps((function, args))
        process = context.Process(target=_child, args=(launch, send, output.name, job))
        process.start()
        send.close()
        return cls(process, receive, output)

    def read(self) -> None:
        """Take the answer of a child that has sent one or died."""
        self.done = True
        try:
            self.result, self.problem = pickle.loads(self.answer.recv_bytes())
        except EOFError:
            self.process.join()
            self.problem = f"died with exit code {self.process.exitcode}\n{self.printed()}"

    def end(self) -> None:
        """Wait for a child that has answered; kill one that has not, or does not end.

        Never signal one that has ended: its number may be another process's by now.
        """
        self.process.join(10 if self.done and not self.problem else 0)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def interrupt(self) -> None:
        """Let a child that has not answered write down where it stands."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.2)
        self.problem = f"did not end\n{self.printed()}"

    def printed(self) -> str:
        self.output.seek(0)
        return self.output.read()[-6000:]


def _collect(ranks: list[_Rank], deadline: float) -> None:
    """Wait for every answer; after the first failure the others get three more seconds."""
    while waiting := [rank for rank in ranks if not rank.done]:
        ready = wait([r.answer for r in waiting], max(0.0, deadline - time.monotonic()))
        for rank in (r for r in waiting if r.answer in ready):
            rank.read()
            if rank.problem:
                deadline = min(deadline, time.monotonic() + 3)
        if not ready:
            for rank in waiting:
                rank.done = True
                rank.interrupt()


def _child(launch: Launch, answer: Connection, output: str, job: bytes) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    faulthandler.register(signal.SIGUSR1)
    gc.freeze()  # DeepSpeed collects garbage often: leave out the imports
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    try:
        function, args = pickle.loads(job)
        start(launch, CPU)
        mesh = Mesh.build(Degrees.of(ParallelConfig(), launch.world_size), CPU)
        result = pickle.dumps((function(mesh, *args), ""))
    except BaseException:
        answer.send_bytes(pickle.dumps((None, traceback.format_exc())))
        os._exit(1)
    answer.send_bytes(result)
    finish()
