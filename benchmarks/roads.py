"""Roads to fused operations on a CPU: torch as written, the same compiled by inductor, and C++.

    OMP_NUM_THREADS=2 python -m benchmarks.roads [--preset M]

Every operation of one layer, forward and backward, in turns in one process: CPU milliseconds,
medians. The first line says what a road costs before its first call: for C++ of a machine that
never compiled it, for inductor with an empty cache of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleave
from benchmarks.report import table
from benchmarks.shape import Shape, add_shape_options, chosen_shape
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.fused.cpp import Cpp
from megatron_ngpt.ops.rope import rotary_table

Work = Callable[[], Any]
CPU = torch.device("cpu")


class Compiled:
    """The reference, each operation compiled."""

    def __getattr__(self, name: str) -> Any:
        made = torch.compile(getattr(REFERENCE, name), dynamic=False)
        setattr(self, name, made)
        return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "M")
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    options = parser.parse_args(argv)
    shape = chosen_shape(options)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(XDG_CACHE_HOME=folder, TORCHINDUCTOR_CACHE_DIR=folder)
        start = time.perf_counter()
        roads: dict[str, Any] = {"torch": REFERENCE, "inductor": Compiled(), "C++": Cpp.load()}
        seconds = {"C++": time.perf_counter() - start}
        works = {name: _works(shape, ops) for name, ops in roads.items()}
        start = time.perf_counter()
        for work in works["inductor"].values():
            work()
        seconds["inductor"] = time.perf_counter() - start
        print("seconds before the first call:", {n: round(s, 1) for n, s in seconds.items()})
        print(table(["CPU ms", *roads], _rows(works, options.rounds)))
    return 0


def _rows(works: dict[str, dict[str, Work]], rounds: int) -> list[list[str]]:
    found = []
    for operation in works["torch"]:
        laps = interleave({road: own[operation] for road, own in works.items()}, rounds + 2, CPU)
        medians = (statistics.median(lap.after(2).cpu) * 1e3 for lap in laps.values())
        found.append([operation, *(f"{ms:.2f}" for ms in medians)])
    return found


def _works(shape: Shape, ops: Operations) -> dict[str, Work]:
    """Calls of one layer's operations on random values."""
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw)

    tokens, width, inner = shape.tokens, shape.width, 4 * shape.width
    h, branch, grad, alpha = *(normal(tokens, width) for _ in range(3)), normal(width)
    u, v, grad_u = (normal(tokens, inner) for _ in range(3))
    s_u, s_v = normal(inner), normal(inner)
    head = width // shape.heads
    q, grad_q = (normal(shape.micro_batch, shape.seq_len, shape.heads, head) for _ in range(2))
    angles, s_qk = rotary_table(torch.arange(shape.seq_len), head, 1e4), normal(shape.heads, head)
    turn = (angles, s_qk, True, "interleaved")
    return {
        "residual step": lambda: ops.residual_step(h, branch, alpha, 0.0),
        "residual step backward": lambda: ops.residual_step_backward(grad, h, branch, alpha, 0.0),
        "rotation, norm and s_qk": lambda: ops.rotary(q, *turn),
        "rotation, norm and s_qk backward": lambda: ops.rotary_backward(grad_q, q, *turn),
        "SwiGLU": lambda: ops.swiglu(u, v, s_u, s_v),
        "SwiGLU backward": lambda: ops.swiglu_backward(grad_u, u, v, s_u, s_v),
    }


if __name__ == "__main__":
    raise SystemExit(main())
