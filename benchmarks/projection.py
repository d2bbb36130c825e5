"""Cost of the projection onto the sphere: share of a step, time per element, bytes communicated.

    python -m benchmarks.projection
    python -m benchmarks.projection --ranks 1 2 4 --stages 1 3 --preset 124m --dtype bf16

Starts its own ranks. For each number of ranks and ZeRO stage it trains a few steps with the real
engine and times the projection inside the step (waiting for other ranks included); between steps
it times the same projection alone and, in turn with it, the naive way: all-gather the fp32 masters
and normalise whole matrices on every rank. Communication is counted where it happens, as the bytes
a rank's collectives work on, and held against the formula: 4 bytes per vector, nothing on one rank.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.contestants import LEARNING_RATE, Conditions
from benchmarks.measure import Laps, ratio, spread
from benchmarks.naive import GatherAndNormalise
from benchmarks.ranks import on_ranks
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import add_shape_options, chosen_shape
from benchmarks.traffic import Traffic
from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.projection import Projection
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh

Work = Callable[[], None]
WARM_UP = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every combination, print a table, write JSON."""
    options = _parser().parse_args(argv)
    shape = chosen_shape(options)
    argument = (shape, options.dtype, options.stages, options.steps)
    ranked = [on_ranks(ranks, options.device, measure, argument) for ranks in options.ranks]
    results = {
        "benchmark": "projection",
        "facts": facts(torch.device(options.device)),
        "shape": vars(shape),
        "dtype": options.dtype,
        "runs": [run for runs in ranked for run in runs],
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


def measure(device: torch.device, argument: Any) -> list[dict[str, Any]]:
    """What one rank has to say, stage by stage."""
    shape, dtype, stages, steps = argument
    mesh = Mesh.build(Degrees.of(ParallelConfig(), dist.get_world_size()), device)
    return [_measure(Conditions(shape, dtype, stage, mesh), steps) for stage in stages]


def _measure(at: Conditions, steps: int) -> dict[str, Any]:
    """The projection in the step, alone, and against the naive one."""
    ranks = at.mesh.degrees.dp
    engine = Engine(at.shape.config("ngpt", at.dtype, at.zero_stage, ranks), at.mesh)
    projections = list(engine.masters.projections.values())
    ways: dict[str, Work] = {
        "sharded": partial(_project, projections),
        "naive": GatherAndNormalise(engine),
    }
    vectors = sum(projection.vectors for projection in projections)
    elements = sum(f.length for f in engine.masters.fragments if f.spec.norm_dim is not None)
    found = {
        "ranks": ranks,
        "stage": at.zero_stage,
        "elements": elements,
        "vectors": vectors,
        "bytes": _bytes_of(ways["sharded"]),
        "bytes_formula": 4 * vectors if ranks > 1 else 0,
        "naive_bytes": _bytes_of(ways["naive"]),
        "difference": _difference(engine, ways["sharded"], ways["naive"]),
    }
    return {**found, **_times(_train(engine, ways, at.batches(), steps), elements)}


def _times(laps: dict[str, Laps], elements: int) -> dict[str, Any]:
    """Medians with quartiles, by the clock and, named so, by CPU time."""
    step, inside, sharded, naive = (laps[n] for n in ("step", "inside", "sharded", "naive"))
    return {
        "step_seconds": spread(step.wall),
        "inside_seconds": spread(inside.wall),
        "share": ratio(inside.wall, step.wall),
        "cpu_share": ratio(inside.cpu, step.cpu),
        "alone_seconds": spread(sharded.wall),
        "nanoseconds_per_element": spread(sharded.wall)["median"] / elements * 1e9,
        "naive_seconds": spread(naive.wall),
        "naive_ratio": ratio(naive.wall, sharded.wall),
        "naive_cpu_ratio": ratio(naive.cpu, sharded.cpu),
    }


def _project(projections: Sequence[Projection]) -> None:
    for projection in projections:
        projection()


def _train(
    engine: Engine, ways: dict[str, Work], batches: list[Tensor], steps: int
) -> dict[str, Laps]:
    """Times of each step, of the projection inside it, and of each way alone after it."""
    device = engine.mesh.device
    laps = {name: Laps() for name in ("step", "inside", *ways)}
    with _timed_inside(engine, laps["inside"]):
        for number in range(WARM_UP + steps):
            batch = batches[number % len(batches)][None]
            step = partial(engine.train_step, batch[..., :-1], batch[..., 1:], LEARNING_RATE)
            laps["step"].add(step, device)
            for name, way in ways.items():
                dist.barrier()
                laps[name].add(way, device)
    return {name: lap.after(WARM_UP) for name, lap in laps.items()}


@contextmanager
def _timed_inside(engine: Engine, laps: Laps) -> Iterator[None]:
    """Time the projection of every step; a step has one that holds vectors."""

    def watched(projection: Projection) -> None:
        if projection.vectors:
            laps.add(projection, engine.mesh.device)

    watching = {n: partial(watched, p) for n, p in engine.masters.projections.items()}
    with mock.patch.object(engine.masters, "projections", watching):
        yield


def _bytes_of(work: Work) -> int:
    """Bytes of the tensors that the collectives called by ``work`` work on."""
    with Traffic() as traffic:
        work()
    return sum(traffic.bytes.values())


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
    header = ["ranks", "ZeRO", "ms a step", "projection, ms", "share, %", "by CPU time, %"]
    header += ["alone, ms", "ns per element", "naive, ms", "naive / sharded", "by CPU time"]
    header += ["bytes", "by formula", "naive bytes"]
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
        with_spread(run["cpu_share"], 1e2, 2),
        with_spread(run["alone_seconds"], 1e3, 2),
        f"{run['nanoseconds_per_element']:.2f}",
        with_spread(run["naive_seconds"], 1e3, 2),
        with_spread(run["naive_ratio"], digits=2),
        with_spread(run["naive_cpu_ratio"], digits=2),
        *(f"{run[key]:,}" for key in ("bytes", "bytes_formula", "naive_bytes")),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
