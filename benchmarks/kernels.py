"""Triton kernels of nGPT's operations: what they need on a chip, and how near a copy they come.

    python -m benchmarks.kernels --offline                   # no GPU: compiled and predicted
    python -m benchmarks.kernels --json kernels.json         # on a GPU: measured beside it

Offline, every kernel is compiled for an A100 (sm_80), an H100 or H200 (sm_90) and a B200 (sm_100)
at several widths; the table has registers and spilled bytes of a thread, shared memory of a
program, the widest loads and stores, bytes moved and floating-point operations by formula, and the
time that the bytes take at 3.35, 4.8 and 8 TB/s (H100, H200, B200: their maker's figures). On a GPU
each kernel takes turns with a device copy of as many bytes; told are GB/s and their share of the
copy's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleave, ratio, spread
from benchmarks.offline import Compiled, compile_for
from benchmarks.report import facts, table, write_json
from megatron_ngpt.ops.fused.gpu.launch import Launch
from megatron_ngpt.ops.fused.gpu.operations import TritonOperations

WIDTHS = (1024, 1536, 2048, 4096, 8192)
CAPABILITIES = (80, 90, 100)
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12, "B200": 8e12}
TOKENS, VOCABULARY, HEAD_DIM = 8192, 32000, 128

FLOPS = {
    "unit": 4,
    "unit_backward": 8,
    "residual_step": 12,
    "residual_step_backward": 36,
    "rms_norm": 4,
    "rms_norm_backward": 11,
    "rotary": 7,
    "rotary_backward": 17,
    "swiglu": 6,
    "swiglu_backward": 16,
    "squared_relu": 3,
    "squared_relu_backward": 6,
    "softmax_sums": 7,
    "softmax_gradient": 8,
}
"""Per element of the largest tensor, counted in the kernels; an exponential counts as one."""


def launches(
    width: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Launch]]:
    """Every kernel as the model calls it at a width, by name."""
    found: list[Launch] = []
    ops = TritonOperations(found.append)

    def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype, device=device)
        return made if device.type == "meta" else made.normal_()

    def fp32(*shape: int) -> Tensor:
        return new(*shape, dtype=torch.float32)

    x, scale = [new(4, TOKENS // 4, width) for _ in range(3)], fp32(width)
    ops.unit(x[0], 0.0)
    ops.unit_backward(x[0], x[1], 0.0)
    ops.residual_step(x[0], x[1], scale, 0.0)
    ops.residual_step_backward(x[0], x[1], x[2], scale, 0.0)
    ops.rms_norm(x[0], scale, 1e-6)
    ops.rms_norm_backward(x[0], x[1], scale, 1e-6, x[2])
    heads = width // HEAD_DIM
    q, g = (new(4, TOKENS // 4, heads, HEAD_DIM) for _ in range(2))
    angles, s_qk = fp32(TOKENS // 4, 1, HEAD_DIM // 2, 2), fp32(heads, HEAD_DIM)
    for style in ("interleaved", "half"):
        ops.rotary(q, angles, s_qk, True, style)
        ops.rotary_backward(g, q, angles, s_qk, True, style)
    u, s_u = [new(TOKENS, 4 * width) for _ in range(3)], fp32(4 * width)
    ops.swiglu(u[0], u[1], s_u, s_u)
    ops.swiglu_backward(*u, s_u, s_u)
    ops.squared_relu(u[0], s_u)
    ops.squared_relu_backward(u[0], u[1], s_u)
    rows = TOKENS // 4
    z, s_z, each = fp32(rows, VOCABULARY), fp32(VOCABULARY), fp32(rows)
    target = torch.zeros(rows, dtype=torch.int64, device=device)
    ops.softmax_sums(z, s_z, VOCABULARY)
    ops.softmax_gradient(z, s_z, s_z, (each, each.abs() + 1), each, target, VOCABULARY)
    for launch in found:
        name = launch.kernel.fn.__name__
        if "INTERLEAVED" in launch.constants:
            name += "" if launch.constants["INTERLEAVED"] else " (half)"
        yield name, launch


def bytes_of(launch: Launch) -> int:
    """Bytes that have to cross global memory: every tensor once, one changed in place twice."""
    tensors = {id(t): t for t in launch.arguments if isinstance(t, Tensor)}
    moved = sum(t.numel() * t.element_size() for t in tensors.values())
    if launch.kernel.fn.__name__ == "softmax_gradient":
        logits = launch.arguments[0]
        moved += logits.numel() * logits.element_size()
    return int(moved)


def flops_of(launch: Launch) -> int:
    """Floating-point operations by formula."""
    largest = max(t.numel() for t in launch.arguments if isinstance(t, Tensor))
    return FLOPS[launch.kernel.fn.__name__] * largest


def offline(widths: Sequence[int], capabilities: Sequence[int]) -> list[dict[str, Any]]:
    """A row for every kernel, width and chip."""
    rows = []
    for width in widths:
        for name, launch in launches(width, torch.device("meta")):
            for capability in capabilities:
                compiled: Compiled = compile_for(launch, capability)
                rows.append({"kernel": name, "width": width, "sm": capability, **vars(compiled)})
                rows[-1] |= {"bytes": bytes_of(launch), "flops": flops_of(launch)}
    return rows


def describe_offline(rows: Sequence[dict[str, Any]]) -> str:
    """One line for a kernel and width; what differs between chips stands side by side."""
    header = ["kernel", "width", "registers", "spilled", "shared", "load", "store", "MB", "MFLOP"]
    header += [f"us, {name}" for name in BANDWIDTHS]
    lines = []
    for kernel, width in dict.fromkeys((row["kernel"], row["width"]) for row in rows):
        same = [r for r in rows if (r["kernel"], r["width"]) == (kernel, width)]
        line = [kernel, str(width)]
        for key in ("registers", "spilled", "shared", "widest_load", "widest_store"):
            line.append("/".join(dict.fromkeys(str(r[key]) for r in same)))
        line += [f"{same[0]['bytes'] / 1e6:.1f}", f"{same[0]['flops'] / 1e6:.0f}"]
        line += [f"{same[0]['bytes'] / speed * 1e6:.1f}" for speed in BANDWIDTHS.values()]
        lines.append(line)
    return table(header, lines)


def measure(widths: Sequence[int], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Every kernel beside a device copy of as many bytes, in turns."""
    rows = []
    for width in widths:
        for name, launch in launches(width, device):
            moved = bytes_of(launch)
            source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            contestants: dict[str, Callable[[], object]] = {
                "kernel": launch,
                "copy": lambda a=source, b=target: b.copy_(a),
            }
            interleave(contestants, 3, device)  # compiled, and memory warm
            laps = interleave(contestants, rounds, device)
            seconds = spread(laps["kernel"].wall)["median"]
            rows.append(
                {
                    "kernel": name,
                    "width": width,
                    "seconds": seconds,
                    "bytes_per_second": moved / seconds,
                    "share_of_copy": ratio(laps["copy"].wall, laps["kernel"].wall)["median"],
                }
            )
    return rows


def describe_measured(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every kernel and width."""
    header = ["kernel", "width", "us", "GB/s", "share of a copy's"]
    lines = [
        [
            row["kernel"],
            str(row["width"]),
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['bytes_per_second'] / 1e9:.0f}",
            f"{row['share_of_copy']:.0%}",
        ]
        for row in rows
    ]
    return table(header, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--offline", action="store_true", help="compile and predict, no GPU needed")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument(
        "--sm", type=int, nargs="+", default=list(CAPABILITIES), choices=CAPABILITIES
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args(argv)
    if options.offline:
        rows = offline(options.widths, options.sm)
        print(describe_offline(rows))
        device = torch.device("cpu")
    else:
        if not torch.cuda.is_available():
            parser.error("no CUDA device here: --offline compiles and predicts without one")
        device = torch.device("cuda")
        rows = measure(options.widths, options.rounds, device)
        print(describe_measured(rows))
    write_json(options.json, {"benchmark": "kernels", "facts": facts(device), "results": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
