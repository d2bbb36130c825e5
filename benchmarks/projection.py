"""Cost of the projection onto the sphere: share of a step, time per element, bytes communicated.

    python -m benchmarks.projection
    python -m benchmarks.projection --ranks 1 2 4 --stages 1 3 --preset 124m --dtype bf16

Starts its own ranks. For each number of ranks and ZeRO stage it trains a few steps with the real
engine and times the projection inside the step (waiting for other ranks included); between steps
it times the same projection alone and, in turn with it, the naive way: all-gather the fp32 masters
and normalise whole matrices on every rank. Communication is counted where it happens, as the bytes
a rank's collectives work on, and held against the formula of 4 bytes per vector.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from benchmarks.contestants import LEARNING_RATE, Conditions
from benchmarks.measure import ratio, spread, timed
from benchmarks.naive import GatherAndNormalise
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import Shape, add_shape_options, chosen_shape
from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import Launch, finish, pick_device, start
from megatron_ngpt.mesh.mesh import Mesh

Work = Callable[[], None]
WARM_UP = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every combination, print a table, write JSON."""
    options = _parser().parse_args(argv)
    shape = chosen_shape(options)
    runs = [run for ranks in options.ranks for run in _on_ranks(ranks, shape, options)]
    results = {
        "benchmark": "projection",
        "facts": facts(torch.device(options.device)),
        "shape": vars(shape),
        "dtype": options.dtype,
        "runs": runs,
    }
    print(describe(results), flush=True)
    write_json(options.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.projection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "cpu")
    parser.add_argument("--steps", type=int, default=12, help="timed steps per combination")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def _on_ranks(ranks: int, shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What rank 0 of that many processes measured, one entry per stage."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        torch.multiprocessing.spawn(_rank, (ranks, port, shape, options, result), nprocs=ranks)
        found: list[dict[str, Any]] = json.loads(result.read_text())
        return found


def _rank(
    rank: int, ranks: int, port: int, shape: Shape, options: argparse.Namespace, result: Path
) -> None:
    """One process: every stage in turn."""
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    device = pick_device(options.device, rank)
    start(Launch(rank, ranks, rank, "127.0.0.1", port), device)
    mesh = Mesh.build(Degrees.of(ParallelConfig(), ranks), device)
    found = []
    for stage in options.stages:
        at = Conditions(shape, options.dtype, stage, mesh)
        found.append({"ranks": ranks, "stage": stage, **measure(at, options.steps)})
    if rank == 0:
        result.write_text(json.dumps(found))
    finish()


def measure(at: Conditions, steps: int) -> dict[str, Any]:
    """The projection in the step, alone, and against the naive one, on this rank."""
    engine = Engine(at.shape.config("ngpt", at.dtype, at.zero_stage, at.mesh.degrees.dp), at.mesh)
    ways: dict[str, Work] = {
        "sharded": partial(_project, engine),
        "naive": GatherAndNormalise(engine),
    }
    vectors = sum(projection.vectors for projection in engine.masters.projections.values())
    elements = sum(f.length for f in engine.masters.fragments if f.spec.norm_dim is not None)
    found = {
        "elements": elements,
        "vectors": vectors,
        "bytes": _bytes_of(ways["sharded"]),
        "bytes_formula": 4 * vectors,
        "naive_bytes": _bytes_of(ways["naive"]),
        "difference": _difference(engine, ways["sharded"], ways["naive"]),
    }
    seconds = _train(engine, ways, at.batches(), steps)
    alone = spread(seconds["sharded"])
    return {
        **found,
        "step_seconds": spread(seconds["step"]),
        "inside_seconds": spread(seconds["inside"]),
        "share": ratio(seconds["inside"], seconds["step"]),
        "alone_seconds": alone,
        "nanoseconds_per_element": alone["median"] / elements * 1e9,
        "naive_seconds": spread(seconds["naive"]),
        "naive_ratio": ratio(seconds["naive"], seconds["sharded"]),
    }


def _project(engine: Engine) -> None:
    for projection in engine.masters.projections.values():
        projection()


def _train(
    engine: Engine, ways: dict[str, Work], batches: list[Tensor], steps: int
) -> dict[str, list[float]]:
    """Seconds of each step, of the projection inside it, and of each way alone after it."""
    device = engine.mesh.device
    seconds: dict[str, list[float]] = {name: [] for name in ("step", "inside", *ways)}
    with _timed_inside(engine, seconds["inside"]):
        for number in range(-WARM_UP, steps):
            batch = batches[number % len(batches)][None]
            seconds["inside"].append(0.0)
            step = partial(engine.train_step, batch[..., :-1], batch[..., 1:], LEARNING_RATE)
            seconds["step"].append(timed(step, device))
            for name, way in ways.items():
                dist.barrier()
                seconds[name].append(timed(way, device))
    return {name: values[WARM_UP:] for name, values in seconds.items()}


@contextmanager
def _timed_inside(engine: Engine, seconds: list[float]) -> Iterator[None]:
    """Add the time of every projection that a step runs to the last of ``seconds``."""

    def watched(projection: Work) -> None:
        seconds[-1] += timed(projection, engine.mesh.device)

    watching = {number: partial(watched, p) for number, p in engine.masters.projections.items()}
    with mock.patch.object(engine.masters, "projections", watching):
        yield


def _bytes_of(work: Work) -> int:
    """Bytes of the tensors on which the collectives that ``work`` calls leave their result."""
    sizes = []

    def counting(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(result: Tensor, *args: Any, **kwargs: Any) -> Any:
            sizes.append(result.nbytes)
            return collective(result, *args, **kwargs)

        return call

    with (
        mock.patch.object(dist, "all_reduce", counting(dist.all_reduce)),
        mock.patch.object(dist, "all_gather_into_tensor", counting(dist.all_gather_into_tensor)),
    ):
        work()
    return sum(sizes)


@torch.no_grad()
def _difference(engine: Engine, sharded: Work, naive: Work) -> float:
    """Largest difference between what the two make of the same weights, off the sphere."""
    pieces = [f.master for f in engine.masters.fragments if f.spec.norm_dim is not None]
    for piece in pieces:
        piece.mul_(torch.rand_like(piece) + 0.5)
    before = [piece.clone() for piece in pieces]
    sharded()
    ours = [piece.clone() for piece in pieces]
    for piece, values in zip(pieces, before, strict=True):
        piece.copy_(values)
    naive()
    apart = [(a - b).abs().max().item() for a, b in zip(ours, pieces, strict=True) if a.numel()]
    engine.masters.changed()
    return max(apart)


def describe(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    header = ["ranks", "ZeRO", "ms a step", "projection in it, ms", "share of the step, %"]
    header += ["alone, ms", "ns per element", "naive, ms", "naive / sharded"]
    header += ["bytes", "4 * vectors", "naive bytes"]
    lines = [table(header, [_row(run) for run in results["runs"]])]
    about = {key: results[key] for key in ("shape", "dtype")}
    return "\n".join([*lines, f"{about}", f"{results['facts']}"])


def _row(run: dict[str, Any]) -> list[str]:
    return [
        str(run["ranks"]),
        str(run["stage"]),
        with_spread(run["step_seconds"], 1e3),
        with_spread(run["inside_seconds"], 1e3, 2),
        with_spread(run["share"], 1e2, 2),
        with_spread(run["alone_seconds"], 1e3, 2),
        f"{run['nanoseconds_per_element']:.2f}",
        with_spread(run["naive_seconds"], 1e3, 2),
        with_spread(run["naive_ratio"], digits=2),
        f"{run['bytes']:,}",
        f"{run['bytes_formula']:,}",
        f"{run['naive_bytes']:,}",
    ]


if __name__ == "__main__":
    finish(main())
