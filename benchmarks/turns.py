"""Contestants at one shape taking turns, and what the rounds say."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.apart import HERE, Apart
from benchmarks.contestants import PEERS, Conditions, Contestant, build, why_not
from benchmarks.measure import Laps, interleave, ratio, spread, with_peak_memory
from benchmarks.report import facts
from benchmarks.shape import dense_peak, flops_per_token
from megatron_ngpt.engine.engine import DTYPES
from megatron_ngpt.profiling import limit

BEFORE = "-before"


@dataclass(frozen=True)
class Field:
    """Who takes part."""

    names: tuple[str, ...]
    before: Path | None = None
    """Another checkout of this project, whose nGPT and GPT take part, too."""
    apart: bool = False
    """Whether everybody has a process."""

    def entrants(self) -> Iterator[tuple[str, str, Path | None]]:
        """Name in the results, name to build, and the checkout whose process it runs in."""
        for name in self.names:
            yield name, name, HERE if self.apart else None
            if self.before is not None and name in ("ngpt", "gpt"):
                yield name + BEFORE, name, self.before


class Entered(NamedTuple):
    """A contestant that is warm."""

    contestant: Contestant | Apart
    peak_bytes: int


def measure(at: Conditions, field: Field, steps: int) -> dict[str, Any]:
    """Results of every contestant that can run here."""
    model = at.shape.config("ngpt", at.dtype, at.zero_stage).model
    device, dtype = at.mesh.device, DTYPES[at.dtype]
    products = limit.Products(model, at.shape.tokens, dtype, device)
    attention = limit.Attention(model, at.shape.micro_batch, at.shape.seq_len, dtype, device)
    bare: dict[str, Callable[[], object]] = {"products": products, "attention": attention}
    left_out: dict[str, str] = {}
    with _entered(at, field, left_out) as entered:
        for work in bare.values():
            work()
        laps = interleave({n: e.contestant for n, e in entered.items()} | bare, steps, device)
        flops = flops_per_token(model, at.shape.seq_len)
        found = {n: _figures(at, e, n, laps, flops) for n, e in entered.items()}
    return {
        "benchmark": "step",
        "facts": facts(device),
        "shape": vars(at.shape),
        "dtype": at.dtype,
        "zero_stage": at.zero_stage,
        "ranks": at.mesh.degrees.dp,
        "flops_per_token": flops,
        "dense_peak": dense_peak(device, at.dtype),
        "limit": {
            "product_flops": products.operations,
            **{
                n: {"seconds": spread(laps[n].wall), "cpu_seconds": spread(laps[n].cpu)}
                for n in bare
            },
        },
        "results": found,
        "left_out": left_out,
    }


@contextmanager
def _entered(
    at: Conditions, field: Field, left_out: dict[str, str]
) -> Iterator[dict[str, Entered]]:
    """Everybody who can run, warmed up; their memory is free again afterwards."""
    running: dict[str, Entered] = {}
    try:
        for name, kind, root in field.entrants():
            reason = why_not(kind, at)
            if root is not None and at.mesh.degrees.dp > 1:
                reason = "a contestant with a process of its own has one rank"
            if not reason:
                reason = _enter(running, name, kind, at, root)
            if reason:
                left_out[name] = reason
        yield running
    finally:
        for entered in running.values():
            entered.contestant.close()
        running.clear()
        torch.compiler.reset()
        gc.collect()


def _enter(
    running: dict[str, Entered], name: str, kind: str, at: Conditions, root: Path | None
) -> str:
    """Let one in; why it could not, empty when it could."""
    try:
        running[name] = _warmed_up(kind, at, root)
    except Exception as err:
        if kind not in PEERS:
            raise
        said = str(err).strip().splitlines() or [""]
        return f"it failed: {type(err).__name__}: {said[0]}"
    return ""


def _warmed_up(name: str, at: Conditions, root: Path | None) -> Entered:
    if root is not None:
        apart = Apart(name, at, root)
        return Entered(apart, apart.peak_bytes)

    def work() -> Contestant:
        contestant = build(name, at)
        contestant()
        contestant()  # the optimizer's state is there now: this step needs the most
        return contestant

    return Entered(*with_peak_memory(work, at.mesh.device))


def _figures(
    at: Conditions, entered: Entered, name: str, laps: Mapping[str, Laps], flops: float
) -> dict[str, Any]:
    mine, first = laps[name], laps[next(iter(laps))]
    on_cpu = at.mesh.device.type == "cpu"
    step, products, attention = (
        lap.cpu if on_cpu else lap.wall for lap in (mine, laps["products"], laps["attention"])
    )
    bare = [p + a for p, a in zip(products, attention, strict=True)]
    rate = at.shape.tokens * at.mesh.degrees.dp / spread(mine.wall)["median"]
    peak = dense_peak(at.mesh.device, at.dtype)
    return {
        "parameters": entered.contestant.parameters,
        "seconds": spread(mine.wall),
        "cpu_seconds": spread(mine.cpu),
        "tokens_per_second": rate,
        "speed_ratio": ratio(first.wall, mine.wall),
        "cpu_speed_ratio": ratio(first.cpu, mine.cpu),
        "times_products": ratio(step, products),
        "limit_share": ratio(bare, step),
        "mfu": peak and rate * flops / (peak * at.mesh.degrees.dp),
        "peak_bytes": entered.peak_bytes,
        "losses": entered.contestant.losses,
    }
