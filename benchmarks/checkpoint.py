"""Saving and loading checkpoints against writing and reading the same bytes plainly.

    python -m benchmarks.checkpoint
    python -m benchmarks.checkpoint --preset toy --rounds 2 --folder /scratch

On two ranks with ZeRO-1: GB/s of a synchronous save (all files on disk, checksums and index
included) and of a resume (checksums verified), against one process that writes and syncs, and
reads, as many bytes in one file; and the seconds that training stands still for a synchronous and
for an asynchronous save. Rounds are interleaved; ratios are taken round by round. Extra memory is
what the process of rank 0 grows by at most during a save, whose copy of the state was there before,
and during a load (Linux only).
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure import ratio, spread, timed
from benchmarks.ranks import on_ranks
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import add_shape_options, chosen_shape
from megatron_ngpt.config import CheckpointConfig, Config
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.run.checkpoints import Progress, checkpoints

RANKS = 2
CHUNK = 1 << 24


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(argv)
    shape = chosen_shape(options)
    config = shape.config("ngpt", "fp32", 1, dp=RANKS)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        argument = (config, folder, options.rounds)
        found = on_ranks(RANKS, options.device, measure, argument)
    results = {
        "benchmark": "checkpoint",
        "facts": facts(torch.device(options.device)),
        "shape": vars(shape),
        **found,
    }
    print(describe(results), flush=True)
    write_json(options.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; the system's temporary folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def measure(device: torch.device, argument: Any) -> dict[str, Any]:
    """Seconds of each kind of work per round, and the bytes of a checkpoint."""
    config, folder, rounds = argument
    engine = Engine(config, Mesh.build(Degrees.of(config.parallel, RANKS), device))
    waiting = _checkpointer(config, engine, f"{folder}/waiting", asynchronous=False)
    going_on = _checkpointer(config, engine, f"{folder}/going_on", asynchronous=True)
    tokens = torch.zeros(1, config.train.micro_batch, config.data.seq_len, dtype=torch.int64)
    tokens = tokens.to(device)
    seconds: dict[str, list[float]] = {}
    extra: dict[str, list[float]] = {"save": [], "load": []}
    size = 0
    for step in range(rounds + 1):  # the first is a warm-up
        engine.train_step(tokens, tokens, 1e-3)
        at = Progress(step)
        save = GrowsBy(lambda at=at: waiting.save(at))
        found = {
            "save": _together(save, device),
            "pause, asynchronous": _together(lambda at=at: going_on.save(at), device),
        }
        going_on.wait()
        size = _bytes(checkpoints(Path(f"{folder}/waiting"))[0])
        load = GrowsBy(waiting.resume)
        found["load"] = _together(load, device)
        for name, grown in (("save", save.bytes), ("load", load.bytes)) if step else ():
            extra[name].append(grown)
        found |= _plain(Path(folder) / "plain", size, device)
        for name, value in found.items() if step else ():
            seconds.setdefault(name, []).append(value)
    return {"bytes": size, "seconds": seconds, "extra_bytes": extra}


class GrowsBy:
    """Work, and by how many bytes the process grew at most while it was done."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work, self.bytes = work, math.nan

    def __call__(self) -> None:
        """Do it. The kernel's record of the largest size is begun anew where it can be."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _kilobytes("VmRSS")
        except OSError:
            self.work()
            return
        self.work()
        self.bytes = (_kilobytes("VmHWM") - before) * 1024.0


def _kilobytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry))


def _checkpointer(config: Config, engine: Engine, folder: str, asynchronous: bool) -> Checkpointer:
    settings = CheckpointConfig(dir=folder, keep=1, asynchronous=asynchronous)
    return Checkpointer(replace(config, checkpoint=settings), engine)


def _together(work: Any, device: torch.device) -> float:
    """Seconds from when all ranks begin until this one is done."""
    dist.barrier()
    return timed(work, device)


def _bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.iterdir())


def _plain(path: Path, size: int, device: torch.device) -> dict[str, float]:
    """One process writes and syncs, then reads, a file of this size; the other waits."""
    if dist.get_rank():
        dist.barrier()
        return {"plain write": 0.0, "plain read": 0.0}
    content = os.urandom(CHUNK)

    def write() -> None:
        with path.open("wb") as stream:
            for _ in range(size // CHUNK):
                stream.write(content)
            stream.write(content[: size % CHUNK])
            stream.flush()
            os.fsync(stream.fileno())

    def read() -> None:
        with path.open("rb") as stream:
            while stream.read(CHUNK):
                pass

    found = {"plain write": timed(write, device), "plain read": timed(read, device)}
    dist.barrier()
    return found


def describe(results: dict[str, Any]) -> str:
    """The table."""
    seconds, size = results["seconds"], results["bytes"]
    against = {"save": "plain write", "load": "plain read"}
    rows = []
    for name, values in seconds.items():
        speed = "" if "pause" in name else f"{size / spread(values)['median'] / 1e9:.2f}"
        plain = against.get(name)
        share = (
            f"{with_spread(ratio(seconds[plain], values), digits=2)} of {plain}" if plain else ""
        )
        extra = results["extra_bytes"].get(name)
        grown = f"{spread(extra)['median'] / 2**20:,.0f}" if extra else ""
        rows.append([name, with_spread(spread(values), 1e3, digits=0), speed, share, grown])
    header = ["work", "ms", "GB/s", "speed", "extra MiB"]
    return f"checkpoint of {size / 1e6:,.0f} MB\n\n" + table(header, rows)


if __name__ == "__main__":
    raise SystemExit(main())
