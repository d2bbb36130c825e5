"""What of a step runs beside its computation, on two ranks over gloo, with a trace to look at.

    OMP_NUM_THREADS=2 python -m benchmarks.overlap --preset S --trace overlap.json

Per ZeRO stage: the share of a step in which rank 0 stands in collectives, by what they are for (a
wait for the other rank is in it); the reading of the next batch, and how much of it the step
hides. The trace opens in Perfetto: steps, their backward and their collectives are one row, the
loader's thread is another.

On a CPU collectives are one after the other with what computes: DeepSpeed overlaps by streams, of
which a CPU has none, so what they take is what there is to win. Two ranks on two cores do not win
it: sending costs their cores as much as computing does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.ranks import on_ranks
from benchmarks.report import facts, table, write_json
from benchmarks.shape import Shape, add_shape_options, chosen_shape
from megatron_ngpt.config import DataConfig
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.loader import BatchReader, train_loader
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.projection import Projection
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh

RANKS, WARM_UP = 2, 2
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
    "all_gather",
    "broadcast",
)


class Span(NamedTuple):
    """Something that took a while."""

    name: str
    begin: float
    """Seconds."""
    end: float
    thread: str


class Timeline:
    """Spans of functions that were wrapped, of every thread."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What runs inside is a span."""
        begin = time.perf_counter()
        yield
        self.spans.append(Span(name, begin, time.perf_counter(), threading.current_thread().name))

    def watch(self, owner: Any, attribute: str, name: str = "") -> None:
        """Make a span of every call of a function from now on."""
        function: Callable = getattr(owner, attribute)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.span(name or attribute):
                return function(*args, **kwargs)

        setattr(owner, attribute, watched)

    def inside(self, outer: str, *inner: str) -> float:
        """Seconds that spans of the names ``inner`` share with spans named ``outer``."""
        parts = [span for span in self.spans if span.name in inner]
        wholes = [span for span in self.spans if span.name == outer]
        return sum(
            max(0.0, min(part.end, whole.end) - max(part.begin, whole.begin))
            for part in parts
            for whole in wholes
        )

    def total(self, *names: str) -> float:
        """Seconds of all spans of these names."""
        return sum(span.end - span.begin for span in self.spans if span.name in names)

    def trace(self) -> list[dict[str, Any]]:
        """Events of a Chrome trace."""
        return [
            {
                "name": span.name,
                "ph": "X",
                "ts": span.begin * 1e6,
                "dur": (span.end - span.begin) * 1e6,
                "pid": 0,
                "tid": span.thread,
            }
            for span in self.spans
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON and the trace."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "S")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each stage")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--trace", type=Path, help="Chrome trace of the last stage")
    options = parser.parse_args(argv)
    shape = chosen_shape(options)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        prefix = _corpus(Path(folder), shape)
        for stage in options.stages:
            argument = (shape, prefix, stage, options.steps)
            found[stage] = on_ranks(RANKS, "cpu", measure, argument)
    events = {stage: row.pop("trace") for stage, row in found.items()}
    results = {"benchmark": "overlap", "facts": facts(torch.device("cpu")), "results": found}
    print(describe(found), flush=True)
    write_json(options.json, results)
    if options.trace:
        options.trace.write_text(json.dumps({"traceEvents": events[options.stages[-1]]}))
    return 0


def _corpus(folder: Path, shape: Shape) -> str:
    """Prefix of a pair of random ids, in documents of 1,000."""
    random = np.random.default_rng(1)
    prefix = folder / "random"
    with IndexedWriter(prefix, np.uint16 if shape.vocab_size < 1 << 16 else np.int32) as writer:
        for _ in range(2000):
            writer.add_document(random.integers(shape.vocab_size, size=1000))
    return str(prefix)


def measure(device: torch.device, argument: Any) -> dict[str, Any]:
    """Where the time of this rank's steps went, and the trace."""
    shape, prefix, stage, steps = argument
    config = shape.config("ngpt", "fp32", stage)
    train = replace(config.train, global_batch=RANKS * shape.micro_batch)
    data = DataConfig(train=prefix, seq_len=shape.seq_len)
    config = replace(config, train=train, data=data)
    timeline = Timeline()
    _watch_all(timeline)  # before DeepSpeed takes hold of the functions
    engine = Engine(config, Mesh.build(Degrees.of(config.parallel, RANKS), device))
    rank, stages = dist.get_rank(), open_corpora(data)[0]
    with train_loader(config, stages, dp=RANKS, dp_rank=rank, consumed=0) as loader:
        for number in range(steps + WARM_UP):
            if number == WARM_UP:
                timeline.spans.clear()
            batch, _ = next(loader)
            with timeline.span("step"):
                engine.train_step(batch.tokens, batch.targets, 1e-3)
    return summary(timeline)


def _watch_all(timeline: Timeline) -> None:
    timeline.watch(BatchReader, "read", "read a batch")
    for name in COLLECTIVES:
        timeline.watch(dist, name)
    timeline.watch(torch.Tensor, "backward")
    timeline.watch(Projection, "_sum", "projection's all-reduce")


def summary(timeline: Timeline) -> dict[str, Any]:
    """Shares of the steps' time, for one rank."""
    step = timeline.total("step")
    reading = timeline.total("read a batch")
    return {
        "step_ms": 1e3 * step / sum(span.name == "step" for span in timeline.spans),
        "collectives": timeline.inside("step", *COLLECTIVES) / step,
        "in_backward": timeline.inside("backward", *COLLECTIVES) / step,
        "projection": timeline.total("projection's all-reduce") / step,
        "reading": reading / step,
        "reading_hidden": timeline.inside("step", "read a batch") / reading if reading else 1.0,
        "trace": timeline.trace(),
    }


def describe(found: dict[int, dict[str, Any]]) -> str:
    """The table."""
    columns = ("in collectives", "of it in the backward", "projection's all-reduce")
    header = ["ZeRO", "ms a step", *columns, "reading the next batch", "of it beside a step"]
    rows = []
    for stage, row in found.items():
        shares = [row[k] for k in ("collectives", "in_backward", "projection", "reading")]
        told = [*(f"{share:.1%}" for share in shares), f"{row['reading_hidden']:.0%}"]
        rows.append([str(stage), f"{row['step_ms']:.1f}", *told])
    return table(header, rows)


if __name__ == "__main__":
    raise SystemExit(main())
