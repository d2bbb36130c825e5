"""Tokens/s and bytes communicated of each way to use two ranks, against one process.

    python -m benchmarks.topology
    python -m benchmarks.topology --preset toy --steps 3 --rounds 1

Every topology trains the same global batch with the same total number of threads: one process has
them all, two ranks share them. Rounds are interleaved, so that drift of the machine hits all alike;
ratios are taken round by round. Bytes are those that rank 0's collectives work on in one step
(benchmarks/traffic.py counts them, estimate/volume.py has the formula).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.measure import ratio, spread, timed
from benchmarks.ranks import on_ranks
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import Shape, add_shape_options, chosen_shape
from benchmarks.traffic import Traffic
from megatron_ngpt.config import Config, ParallelConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.estimate.volume import step_traffic
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh

MICRO_BATCHES = 4
"""Micro-batches of one process in a step; a pipeline needs several."""


class Topology(NamedTuple):
    """One row of the table."""

    name: str
    ranks: int
    parallel: ParallelConfig
    zero_stage: Any


TOPOLOGIES = (
    Topology("one process", 1, ParallelConfig(), 1),
    Topology("dp2, ZeRO-0", 2, ParallelConfig(), 0),
    Topology("dp2, ZeRO-1", 2, ParallelConfig(), 1),
    Topology("dp2, ZeRO-2", 2, ParallelConfig(), 2),
    Topology("dp2, ZeRO-3", 2, ParallelConfig(), 3),
    Topology("tp2", 2, ParallelConfig(tp=2), 1),
    Topology("pp2, 1F1B", 2, ParallelConfig(pp=2), 1),
    Topology("pp2, interleaved", 2, ParallelConfig(pp=2, schedule="interleaved"), 1),
    Topology("pp2, zero bubble (V)", 2, ParallelConfig(pp=2, schedule="zbv"), 1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every topology, print a table, write JSON."""
    options = _parser().parse_args(argv)
    shape = chosen_shape(options)
    runs: dict[str, list[dict[str, Any]]] = {topology.name: [] for topology in TOPOLOGIES}
    for _ in range(options.rounds):
        for topology in TOPOLOGIES:
            argument = (shape, options.dtype, topology, options.steps)
            found = on_ranks(topology.ranks, options.device, measure, argument)
            runs[topology.name].append(found)
    results = {
        "benchmark": "topology",
        "facts": facts(torch.device(options.device)),
        "shape": vars(shape),
        "dtype": options.dtype,
        "runs": {name: summary(found, runs["one process"]) for name, found in runs.items()},
    }
    print(describe(results), flush=True)
    write_json(options.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.topology",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "cpu")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a topology and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def configuration(shape: Shape, dtype: Any, topology: Topology) -> tuple[Config, Degrees]:
    """The run of one row: the same global batch for all."""
    degrees = Degrees.of(topology.parallel, topology.ranks)
    config = shape.config("ngpt", dtype, topology.zero_stage)
    batch = MICRO_BATCHES * shape.micro_batch
    train = replace(config.train, global_batch=batch)
    return replace(config, parallel=topology.parallel, train=train), degrees


def measure(device: torch.device, argument: Any) -> dict[str, Any]:
    """Seconds of each step and bytes of one, on this rank."""
    shape, dtype, topology, steps = argument
    config, degrees = configuration(shape, dtype, topology)
    engine = Engine(config, Mesh.build(degrees, device))
    share = (MICRO_BATCHES // degrees.dp, shape.micro_batch, shape.seq_len)
    torch.manual_seed(0)  # ranks of tp and pp work on the same tokens
    tokens = torch.randint(shape.vocab_size, share, device=device)

    def step() -> None:
        engine.train_step(tokens, tokens, 1e-3)

    step()
    with Traffic() as traffic:
        step()
    dist.barrier()
    return {
        "seconds": [timed(step, device) for _ in range(steps)],
        "bytes": sum(traffic.bytes.values()),
        "formula": sum(part.size for part in step_traffic(config, degrees)),
    }


def summary(found: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: median step of each round, and how much faster than one process it is."""
    seconds = [spread(run["seconds"])["median"] for run in found]
    reference = [spread(run["seconds"])["median"] for run in alone]
    return {
        "step_seconds": spread(seconds),
        "speed_against_one_process": ratio(reference, seconds),
        "bytes": found[0]["bytes"],
        "formula": found[0]["formula"],
    }


def describe(results: dict[str, Any]) -> str:
    """The table."""
    shape = results["shape"]
    tokens = MICRO_BATCHES * shape["micro_batch"] * shape["seq_len"]
    rows = []
    for name, run in results["runs"].items():
        median = run["step_seconds"]["median"]
        rows.append([
            name,
            f"{tokens / median:,.0f}",
            with_spread(run["speed_against_one_process"], digits=2),
            f"{run['bytes'] / 1e6:,.2f}",
            f"{run['formula'] / 1e6:,.2f}",
        ])  # fmt: skip
    header = ["topology", "tokens/s", "speed against one process", "MB a step", "by formula"]
    return table(header, rows)


if __name__ == "__main__":
    raise SystemExit(main())
