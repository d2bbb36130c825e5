"""What the rows of a study say, as tables of a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from megatron_ngpt.study.factor import Curve, Factor, factors, mean_and_interval
from megatron_ngpt.study.plan import Contestant, Study, around_best, searched
from megatron_ngpt.study.results import Row, losses


@dataclass(frozen=True)
class Outcome:
    """One contestant at its best learning rate."""

    contestant: Contestant
    log2_lr: float
    """The learning rate whose mean over seeds is lowest, log2."""
    rows: tuple[Row, ...]
    """Its runs there, one for each seed that is done."""
    sweep: dict[float, list[float]]
    """Final losses of all seeds by log2 of the learning rate."""
    inside: bool
    """Whether learning rates on both sides were tried and are worse."""

    @property
    def curves(self) -> list[Curve]:
        """Validation loss over tokens, one for each seed."""
        return [row["curve"] for row in self.rows]

    @property
    def loss(self) -> tuple[float, float]:
        """Mean final validation loss and half of its 95 % interval."""
        return mean_and_interval([row["loss"] for row in self.rows])

    @property
    def cpu_seconds_per_token(self) -> float:
        """Median over its runs, of all that a run did."""
        costs = sorted(row["cpu_seconds"] / max(1, row["tokens"]) for row in self.rows)
        return costs[len(costs) // 2]

    def sensitivity(self, octaves: float) -> float:
        """What the loss rises by so many octaves off the best learning rate; nan if not tried."""
        there = self.sweep.get(self.log2_lr + octaves)
        if not there:
            return math.nan
        return sum(there) / len(there) - self.loss[0]


def outcomes(study: Study, rows: dict[str, Row], corpus: str) -> list[Outcome]:
    """Every contestant that has finished runs, in the order of the study's file."""
    found = []
    for contestant in study.contestants:
        known = searched(study, contestant, losses(rows), corpus)
        runs = around_best(study, contestant, losses(rows), corpus)
        done = [rows[run.id] for run in runs if run.id in rows]
        if not done:
            continue
        sweep = {x: [loss] for x, loss in known.items()}
        for x in {row["log2_lr"] for row in done}:
            sweep[x] = [_loss(row) for row in done if row["log2_lr"] == x]
        complete = {x: v for x, v in sweep.items() if len(v) == max(map(len, sweep.values()))}
        best = min(complete, key=lambda x: sum(complete[x]) / len(complete[x]))
        there = tuple(row for row in done if row["log2_lr"] == best and row["loss"] is not None)
        if there:
            inside = min(sweep) < best < max(sweep)
            found.append(Outcome(contestant, best, there, dict(sorted(sweep.items())), inside))
    return found


def _loss(row: Row) -> float:
    return math.inf if row["loss"] is None else float(row["loss"])


def compared(study: Study, found: Sequence[Outcome]) -> dict[str, list[Factor]]:
    """Factor of tokens to equal loss against the baseline, by contestant."""
    base = [o for o in found if o.contestant.name == study.baseline]
    if not base:
        return {}
    others = [o for o in found if o.contestant.name != study.baseline]
    return {o.contestant.name: factors(base[0].curves, o.curves) for o in others}


def last_factor(values: Iterable[Factor]) -> Factor | None:
    """The factor at the most tokens at which there is one with bounds, if any has bounds."""
    known = [value for value in values if math.isfinite(value.factor)]
    sure = [value for value in known if math.isfinite(value.low + value.high)]
    best = sure or known
    return best[-1] if best else None


def page(study: Study, found: Sequence[Outcome], figures: Sequence[Path], missing: int) -> str:
    """The study as a Markdown page; every figure has its number of seeds and its interval."""
    lines = [f"# {study.name}", "", study.question, ""]
    if missing:
        lines += [f"Not finished: at least {missing} runs are missing.", ""]
    lines += tables(study, found)
    lines += [
        "Losses are nats a token on held-out documents, mean over seeds, plus or minus half of the "
        "95 % interval by Student's t. A factor is the tokens that the baseline needed for a loss "
        "over those of the contestant, at the last loss that both reached; in brackets what 95 % "
        "of the bootstrap over seeds holds. With CPU time, both are multiplied by the time a token "
        "took. Learning rates marked * are at the edge of what was tried.",
        "",
    ]
    lines += [f"![{path.stem}]({path.name})" for path in figures]
    return "\n".join(lines).rstrip() + "\n"


def tables(study: Study, found: Sequence[Outcome]) -> list[str]:
    """Lines of all tables that there are rows for."""
    lines = [table(study, found), ""]
    if lengths := lengths_table(study, found):
        lines += ["Loss of whole documents by length, nats a token:", "", lengths, ""]
    if spectra := spectra_table(found):
        lines += ["Condition numbers, median over layers and seeds:", "", spectra, ""]
    return lines


def table(study: Study, found: Sequence[Outcome]) -> str:
    """A row for each contestant."""
    header = ["contestant", "best lr", "seeds", "tokens", "loss", "factor of tokens", "of CPU time"]
    rows = [header, ["---"] * len(header)]
    by_name, factor = {o.contestant.name: o for o in found}, compared(study, found)
    for name, outcome in by_name.items():
        loss, half = outcome.loss
        last = last_factor(factor.get(name, []))
        words = [name, f"2^{outcome.log2_lr:g}{'' if outcome.inside else '*'}"]
        words += [str(len(outcome.rows)), f"{outcome.rows[0]['tokens']:,}", _plus_minus(loss, half)]
        base = by_name.get(study.baseline)
        if last is None or base is None:
            words += ["1 (baseline)" if name == study.baseline else "-", "-"]
        else:
            dearer = outcome.cpu_seconds_per_token / base.cpu_seconds_per_token
            words += [_within(last, 1.0), _within(last, dearer)]
        rows.append(words)
    return _markdown(rows)


def lengths_table(study: Study, found: Sequence[Outcome]) -> str:
    """Loss of whole documents beyond the trained length; empty where nothing was measured."""
    lines = []
    for outcome in found:
        there = [row["by_length"] for row in outcome.rows if "by_length" in row]
        for kind in there[0] if there else ():
            cells = [f"{outcome.contestant.name}", kind, str(len(there))]
            for length in map(str, study.lengths):
                values = [told[kind][length] for told in there if length in told[kind]]
                cells.append(_plus_minus(*mean_and_interval(values)) if values else "-")
            lines.append(cells)
    header = ["contestant", "positions", "seeds", *(f"{n} tokens" for n in study.lengths)]
    return _markdown([header, ["---"] * len(header), *lines]) if lines else ""


def clock_table(study: Study, found: Sequence[Outcome], timed: Mapping[str, Any]) -> str:
    """Who is ahead by the clock: factors of tokens over those of a step's time.

    Args:
        study: with the baseline of both.
        found: its outcomes so far; perhaps none.
        timed: as benchmarks/study_steps.py writes it.
    """
    names = ["contestant", f"a step, times {study.baseline}'s", "is ahead from a factor of tokens"]
    lines = [[*names, "factor of time so far"], ["---"] * 4]
    factor = compared(study, found)
    for name, step in timed["results"].items():
        middle, low, high = (step["ratio"][key] for key in ("median", "q25", "q75"))
        if name != study.baseline:
            last = last_factor(factor.get(name, []))
            so_far = "-" if last is None else _within(last, middle)
            lines.append([name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{middle:.2f}", so_far])
    facts = timed["facts"]
    told = f"Step times on {facts['device']}, {facts['threads']} threads, quartiles in brackets:"
    return f"{told}\n\n{_markdown(lines)}"


def spectra_table(found: Sequence[Outcome]) -> str:
    """Condition numbers by kind of matrix, median over layers and seeds; empty without any."""
    lines: dict[str, list[str]] = {}
    kinds: dict[str, None] = {}
    for outcome in found:
        there = [row["spectra"] for row in outcome.rows if "spectra" in row]
        cells: dict[str, list[float]] = {}
        for name, value in (item for told in there for item in told.items()):
            if name.endswith("weight"):
                kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
                cells.setdefault(kind.removesuffix(".weight"), []).append(value)
        if cells:
            kinds |= dict.fromkeys(cells)
            told = [f"{median(cells[kind]):.3g}" if kind in cells else "-" for kind in kinds]
            lines[outcome.contestant.name] = [outcome.contestant.name, str(len(there)), *told]
    header = ["contestant", "seeds", *kinds]
    return _markdown([header, ["---"] * len(header), *lines.values()]) if lines else ""


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plus_minus(value: float, half: float) -> str:
    return f"{value:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def _within(factor: Factor, dearer: float) -> str:
    words = f"{factor.factor / dearer:.2f}"
    if math.isnan(factor.low):
        return f"{words} (one seed)"
    return f"{words} ({factor.low / dearer:.2f} to {factor.high / dearer:.2f})"
