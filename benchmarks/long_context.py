"""Peak memory and seconds per token as sequences grow, with and without each way to save memory.

    python -m benchmarks.long_context
    python -m benchmarks.long_context --lengths 64k --ways plain,all --plot long.png --table long.md

All of it takes about 20 minutes of two cores. benchmarks.longest is what a GPU is for.

One training step of one sequence after a warm-up of 512 tokens, fp32, in processes of their own:
one, or two that share the sequence and have as many threads together. Memory is the most bytes of
tensors that rank 0 had allocated at once beyond what lived before the step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import timed, with_peak_memory
from benchmarks.ranks import on_ranks
from benchmarks.report import facts, table, write_json
from megatron_ngpt.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.estimate.activations import activations
from megatron_ngpt.extras import require
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh

MODEL = ModelConfig(width=32, layers=2, heads=2, vocab_size=2048)
WARM_UP, EOD = 512, 0


@dataclass(frozen=True)
class Way:
    """Settings that differ from the plain run's."""

    train: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, int] = field(default_factory=dict)
    documents: bool = False


CHUNKS, TILES = {"loss_chunk": 1024}, {"mlp_tile": 1024}
ALL = {**CHUNKS, **TILES, "recompute": True}
WAYS = {
    "plain": Way(),
    "documents": Way(documents=True),
    "loss chunks": Way(CHUNKS),
    "mlp tiles": Way(TILES),
    "recompute": Way({"recompute": True}),
    "attention kept": Way({"recompute": True, "recompute_keep": ("attention",)}),
    "matmul kept": Way({"recompute": True, "recompute_keep": ("attention", "matmul")}),
    "all": Way(ALL),
    "all but attention": Way({**ALL, "recompute_keep": ("attention",)}),
    "cp2 ulysses": Way({}, {"cp": 2}),
    "cp2 ring": Way({}, {"cp": 2, "ulysses": 1}),
    "cp2 ring and all": Way(ALL, {"cp": 2, "ulysses": 1}),
}


@dataclass(frozen=True)
class Job:
    """One cell of the table."""

    way: str
    length: int

    @property
    def config(self) -> Config:
        """A run with one sequence a step."""
        way = WAYS[self.way]
        return Config(
            model=MODEL,
            parallel=ParallelConfig(**way.parallel),
            optim=OptimConfig(schedule="constant"),
            data=DataConfig(seq_len=self.length, document_mask=way.documents, eod=EOD),
            train=TrainConfig(global_batch=1, micro_batch=1, **way.train),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every way at every length, print a table, write JSON and plot."""
    options = _options().parse_args(argv)
    results: dict[str, Any] = {"facts": facts(torch.device("cpu")), "measured": []}
    for length in map(length_of, options.lengths.split(",")):
        for way in options.ways.split(","):
            job = Job(way, length)
            found = on_ranks(job.config.parallel.cp, "cpu", measured, job)
            results["measured"].append({**asdict(job), **found})
            print(_line(results["measured"][-1]), flush=True)
    print(report(results))
    if options.table:
        options.table.write_text(report(results) + "\n", encoding="utf-8")
    write_json(options.json, results)
    if options.plot:
        plot(results, options.plot)
    return 0


def measured(device: torch.device, job: Job) -> dict[str, float]:
    """Seconds and bytes of one step on this rank, and the bytes of activations estimated."""
    config = job.config
    degrees = Degrees.of(config.parallel, torch.distributed.get_world_size())
    engine = Engine(config, Mesh.build(degrees, device))
    _step(engine, WARM_UP)
    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        seconds = timed(lambda: _step(engine, job.length), device)

    _, peak = with_peak_memory(work, device)
    return {"seconds": seconds, "peak": peak, "estimate": activations(config, degrees, 0)}


def _step(engine: Engine, length: int) -> None:
    """Documents end every 1000 tokens or so, where they are kept apart."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1, MODEL.vocab_size, (1, 1, length + 1), generator=generator)
    rows[torch.rand(rows.shape, generator=generator) < 1e-3] = EOD
    engine.train_step(rows[..., :-1], rows[..., 1:], lr=1e-3)


def _line(found: dict[str, Any]) -> str:
    per_token = 1e6 * found["seconds"] / found["length"]
    return (
        f"{found['way']:>14} {found['length']:>7}: {found['peak'] / 2**20:9.1f} MiB "
        f"(activations by estimate {found['estimate'] / 2**20:9.1f}), {per_token:8.1f} us/token"
    )


def report(results: dict[str, Any]) -> str:
    """Markdown: MiB and microseconds per token, a row per way, a column per length."""
    cells = {(m["way"], m["length"]): m for m in results["measured"]}
    lengths = sorted({length for _, length in cells})
    rows = []
    for way in dict.fromkeys(way for way, _ in cells):
        row = [way]
        for length in lengths:
            found = cells.get((way, length))
            seconds = found and 1e6 * found["seconds"] / length
            row.append(f"{found['peak'] / 2**20:,.0f} / {seconds:,.0f}" if found else "")
        rows.append(row)
    return table(["MiB / us per token", *(f"{length:,}" for length in lengths)], rows)


def plot(results: dict[str, Any], path: Path) -> None:
    """Two charts over length, a line per way."""
    pyplot = require("matplotlib.pyplot", "plot", "--plot")
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    colors = pyplot.colormaps["tab20"].colors
    for number, way in enumerate(dict.fromkeys(m["way"] for m in results["measured"])):
        own = [m for m in results["measured"] if m["way"] == way]
        lengths = [m["length"] for m in own]
        style = {"marker": "o", "color": colors[number % len(colors)], "label": way}
        axes[0].plot(lengths, [m["peak"] / m["length"] / 1024 for m in own], **style)
        axes[1].plot(lengths, [1e6 * m["seconds"] / m["length"] for m in own], **style)
    ticks = sorted({m["length"] for m in results["measured"]})
    for axis, what in zip(axes, ("peak KiB per token", "microseconds per token"), strict=True):
        axis.set(xscale="log", xlabel="tokens of a sequence", ylabel=what, ylim=0)
        axis.set_xticks(ticks, [f"{length:,}" for length in ticks])
        axis.minorticks_off()
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def length_of(word: str) -> int:
    """2k is 2048 tokens."""
    return int(word[:-1]) << 10 if word.endswith("k") else int(word)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default="2k,8k,32k,64k", help="default: %(default)s")
    parser.add_argument("--ways", default=",".join(WAYS), help="default: all")
    parser.add_argument("--json", type=Path, help="file for all results")
    parser.add_argument("--table", type=Path, help="file for the table, Markdown")
    parser.add_argument("--plot", type=Path, help="image file; extra plot")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
