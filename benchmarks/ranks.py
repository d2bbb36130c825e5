"""Run a function on several processes of this machine and bring back what rank 0 measured."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from megatron_ngpt.mesh.launch import Launch, finish, pick_device, start

Measure = Callable[[torch.device, Any], Any]
"""(device, argument) -> what rank 0 reports, plain enough for JSON; runs on every rank."""


def on_ranks(ranks: int, device: str, measure: Measure, argument: Any) -> Any:
    """Start ``ranks`` processes that share this process's threads among them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        threads = max(1, torch.get_num_threads() // ranks)
        arguments = (ranks, port, threads, device, measure, argument, result)
        torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks)
        return json.loads(result.read_text())


def _rank(
    rank: int,
    ranks: int,
    port: int,
    threads: int,
    wanted: str,
    measure: Measure,
    argument: Any,
    result: Path,
) -> None:
    torch.set_num_threads(threads)
    device = pick_device(wanted, rank)
    start(Launch(rank, ranks, rank, "127.0.0.1", port), device)
    found = measure(device, argument)
    if rank == 0:
        result.write_text(json.dumps(found))
    finish()
