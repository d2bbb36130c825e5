"""The longest sequence that one GPU trains with, and how fast: ours against nGPT written plainly.

    python -m benchmarks.longest                                        # a 1B nGPT, bf16
    python -m benchmarks.longest --ways plain,all --limit 64k --json longest.json
    python -m benchmarks.longest --device cpu --model toy --start 256 --limit 1k

Lengths double until one does not fit, then one and a half times the last that did is tried. Each
try is a process of its own: a step of one sequence to warm up and one that is timed. MFU as in
benchmarks.step, which does not count what is computed again. The plain model is benchmarks/plain.py
under autocast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from benchmarks.long_context import length_of
from benchmarks.measure import timed, with_peak_memory
from benchmarks.plain import PlainNGPT, plain_step
from benchmarks.ranks import on_ranks
from benchmarks.report import facts, table, write_json
from benchmarks.shape import dense_peak, flops_per_token
from megatron_ngpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh

MODELS = {
    # as examples/configs/ngpt_1b_8k.yaml
    "1b": ModelConfig(width=1280, layers=36, heads=20, ffn_width=5120, vocab_size=32000),
    "toy": ModelConfig(width=32, layers=2, heads=2, vocab_size=512),
}
CHUNKS = {"loss_chunk": 4096}
ALL = {**CHUNKS, "mlp_tile": 4096, "recompute": True}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "loss_chunks": CHUNKS,
    "all": ALL,
    "all_but_attention": {**ALL, "recompute_keep": ("attention",)},
    "all_offloaded": {**ALL, "offload": True},
}
"""``all`` is loss chunks, MLP tiles and recomputation, the last two the same and more; ``plain`` is
not our model."""


@dataclass(frozen=True)
class Try:
    """One model at one length."""

    way: str
    model: str
    length: int
    dtype: Literal["fp32", "bf16"]

    @property
    def config(self) -> Config:
        """A run with one sequence a step."""
        return Config(
            model=MODELS[self.model],
            optim=OptimConfig(schedule="constant"),
            data=DataConfig(seq_len=self.length),
            train=TrainConfig(global_batch=1, micro_batch=1, dtype=self.dtype, **WAYS[self.way]),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Find the longest sequence of every way, print a table, write JSON."""
    options = _options().parse_args(argv)
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else options.device
    results: dict[str, Any] = {"benchmark": "longest", "measured": []}
    results["facts"] = facts(torch.device(device if device == "cuda" else "cpu"))
    for way in options.ways.split(","):
        first = Try(way, options.model, length_of(options.start), options.dtype)
        results["measured"] += longest(first, length_of(options.limit), device)
    print(report(results["measured"]))
    write_json(options.json, results)
    return 0


def longest(first: Try, limit: int, device: str) -> list[dict[str, Any]]:
    """What was measured at every length that fits, the longest last."""
    found: list[dict[str, Any]] = []
    length, doubled = first.length, True
    while length <= limit:
        job = Try(first.way, first.model, length, first.dtype)
        try:
            found.append({**asdict(job), **on_ranks(1, device, measured, job)})
            print(_line(found[-1]), flush=True)
        except ProcessRaisedException as failed:
            if "out of memory" not in str(failed) and "allocate memory" not in str(failed):
                raise
            print(f"{first.way:>20} {length:>9}: out of memory", flush=True)
            if not found or not doubled:
                break
            doubled, length = False, found[-1]["length"] * 3 // 2
            continue
        if not doubled:
            break
        length *= 2
    return found


def measured(device: torch.device, job: Try) -> dict[str, float | None]:
    """Seconds, peak bytes, tokens/s and MFU of the second step."""
    step = _step(device, job)
    batch = torch.randint(MODELS[job.model].vocab_size, (1, job.length + 1), device=device)
    step(batch)
    seconds, peak = with_peak_memory(lambda: timed(lambda: step(batch), device), device)
    rate, dense = job.length / seconds, dense_peak(device, job.dtype)
    flops = flops_per_token(MODELS[job.model], job.length)
    return {
        "seconds": seconds,
        "peak": peak,
        "rate": rate,
        "mfu": rate * flops / dense if dense else None,
    }


def _step(device: torch.device, job: Try) -> Callable[[Tensor], object]:
    if job.way == "plain":
        with device:
            model = PlainNGPT(MODELS[job.model])
        model.normalize()
        return plain_step(model, job.dtype == "bf16")
    engine = Engine(job.config, Mesh.build(Degrees(1, 1, 1, 1), device))
    return lambda batch: engine.train_step(batch[None, :, :-1], batch[None, :, 1:], 1e-3)


def _line(found: dict[str, Any]) -> str:
    return f"{found['way']:>20} {found['length']:>9}: " + ", ".join(_cells(found)[1:])


def _cells(found: dict[str, Any]) -> list[str]:
    mfu = "unknown" if found["mfu"] is None else f"{found['mfu']:.1%}"
    memory = f"{found['peak'] / 2**30:.2f} GiB"
    return [f"{found['length']:,}", f"{found['rate']:,.0f} tokens/s", f"MFU {mfu}", memory]


def report(measured: Sequence[dict[str, Any]]) -> str:
    """A row per way: its longest sequence, and its speed at the longest that all reach."""
    ways = {
        way: [m for m in measured if m["way"] == way] for way in {m["way"]: 0 for m in measured}
    }
    common = min(own[-1]["length"] for own in ways.values())
    rows = []
    for way, own in ways.items():
        at_common = max((m for m in own if m["length"] <= common), key=lambda m: m["length"])
        rows.append([way, *_cells(own[-1]), *_cells(at_common)[:3]])
    header = [
        "",
        "longest",
        "tokens/s",
        "MFU",
        "peak of a step",
        "shared length",
        "tokens/s",
        "MFU",
    ]
    return table(header, rows)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="default: all")
    parser.add_argument("--model", choices=MODELS, default="1b", help="default: %(default)s")
    parser.add_argument("--start", default="8k", help="first length (%(default)s)")
    parser.add_argument("--limit", default="256k", help="longest tried (%(default)s)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", type=Path, help="file for all results")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
