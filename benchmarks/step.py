"""Tokens per second of a training step: nGPT, our GPT, and the package nGPT-pytorch.

    python -m benchmarks.step
    python -m benchmarks.step --preset 124m --dtype bf16 --contestants ngpt gpt ngpt-compiled
    torchrun --nproc-per-node 2 -m benchmarks.step --zero-stage 3

All contestants live in one process and take turns, step by step, after two steps of warm-up each;
the figures are medians with quartiles, the ratios are taken round by round, by the clock and by
the CPU time of the process, which other work on the machine hardly changes. Ours run through the
real engine. nGPT-pytorch 0.2.16 cannot train as shipped (its modules have ``__eq__`` without
``__hash__``); the benchmark gives them one, and its weights are normalised after each step
("package"), as well as in each forward pass ("package-default", the way it is shipped).

MFU is tokens/s * flops_per_token / dense peak, where the peak of the device is known (H100, H200
in bf16: 989 TFLOP/s); flops_per_token = 6 * N + 6 * layers * T * heads * head_dim with N the
matrices without the embedding table, attention counted causal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import NAMES, Conditions, Contestant, build, why_not
from benchmarks.measure import interleave, ratio, spread, with_peak_memory
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import add_shape_options, chosen_shape, dense_peak, flops_per_token
from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import finish, pick_device, read_launch, start
from megatron_ngpt.mesh.mesh import Mesh


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table on rank 0, write JSON."""
    options = _parser().parse_args(argv)
    launch = read_launch()
    device = pick_device(options.device, launch.local_rank)
    start(launch, device)
    mesh = Mesh.build(Degrees.of(ParallelConfig(), launch.world_size), device)
    conditions = Conditions(chosen_shape(options), options.dtype, options.zero_stage, mesh)
    results = measure(conditions, options.contestants, options.steps)
    if launch.rank == 0:
        print(describe(results), flush=True)
        write_json(options.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "cpu")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each contestant")
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=NAMES[:2] + NAMES[4:])
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def measure(at: Conditions, names: Sequence[str], steps: int) -> dict[str, Any]:
    """Results of every contestant that can run here."""
    left_out = {name: reason for name in names if (reason := why_not(name, at))}
    running, peaks = {}, {}
    for name in names:
        if name not in left_out:
            running[name], peaks[name] = _warmed_up(name, at)
    laps = interleave(running, steps, at.mesh.device)
    shape, peak = at.shape, dense_peak(at.mesh.device, at.dtype)
    tokens = shape.tokens * at.mesh.degrees.dp
    flops = flops_per_token(shape.config("ngpt", at.dtype, at.zero_stage).model, shape.seq_len)
    first = laps[next(iter(laps))]
    found = {}
    for name, contestant in running.items():
        seconds, cpu_seconds = laps[name].wall, laps[name].cpu
        rate = tokens / spread(seconds)["median"]
        found[name] = {
            "parameters": contestant.parameters,
            "seconds": spread(seconds),
            "cpu_seconds": spread(cpu_seconds),
            "tokens_per_second": rate,
            "speed_ratio": ratio(first.wall, seconds),
            "cpu_speed_ratio": ratio(first.cpu, cpu_seconds),
            "mfu": peak and rate * flops / (peak * at.mesh.degrees.dp),
            "peak_bytes": peaks[name],
            "losses": contestant.losses,
        }
    return {
        "benchmark": "step",
        "facts": facts(at.mesh.device),
        "shape": vars(shape),
        "dtype": at.dtype,
        "zero_stage": at.zero_stage,
        "ranks": at.mesh.degrees.dp,
        "flops_per_token": flops,
        "dense_peak": peak,
        "results": found,
        "left_out": left_out,
    }


def _warmed_up(name: str, at: Conditions) -> tuple[Contestant, int]:
    def work() -> Contestant:
        contestant = build(name, at)
        contestant()
        contestant()  # the optimizer's state is there now: this step needs the most
        return contestant

    return with_peak_memory(work, at.mesh.device)


def describe(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    first = next(iter(results["results"]))
    header = ["", "parameters", "tokens/s", "ms a step", f"speed / {first}"]
    header += ["CPU ms a step", "the same by CPU time", "MFU", "peak MiB"]
    rows = [_row(name, found) for name, found in results["results"].items()]
    about = {key: results[key] for key in ("shape", "dtype", "zero_stage", "ranks")}
    lines = [table(header, rows), f"{about}", f"{results['facts']}"]
    return "\n".join(lines + [f"left out: {n}: {why}" for n, why in results["left_out"].items()])


def _row(name: str, found: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{found['parameters']:,}",
        f"{found['tokens_per_second']:,.0f}",
        with_spread(found["seconds"], 1e3),
        with_spread(found["speed_ratio"], digits=3),
        with_spread(found["cpu_seconds"], 1e3),
        with_spread(found["cpu_speed_ratio"], digits=3),
        "" if found["mfu"] is None else f"{found['mfu']:.1%}",
        f"{found['peak_bytes'] / 2**20:,.0f}",
    ]


if __name__ == "__main__":
    finish(main())
