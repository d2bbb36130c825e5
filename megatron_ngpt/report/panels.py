"""Which pictures a report has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from megatron_ngpt.report.compare import factor_panel
from megatron_ngpt.report.drawing import Line, Panel, Section, marks, scattered, thinned, vital
from megatron_ngpt.report.events import Moment, time_lost
from megatron_ngpt.report.reading import RunData

COLOURS = 9
"""Different ones of a picture; lines beyond are dotted."""
_UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
GREEK = {"alpha_attention": "α_A", "alpha_mlp": "α_M"}
SCALES = {
    "alpha_attention": " (how far attention moves the hidden state)",
    "alpha_mlp": " (how far the MLP does)",
    "s_qk": " (queries and keys)",
    "s_u": " (MLP)",
    "s_v": " (MLP's gate)",
    "s_z": " (logits)",
}


def sections(
    runs: Sequence[RunData],
    happened: Sequence[Sequence[Moment]],
    speeds: Sequence[float],
    peak: float,
) -> list[Section]:
    """All pictures, those of the model run by run.

    Args:
        runs: the first is the one that others are compared with.
        happened: to each run.
        speeds: floating-point operations of one step, for each run; nan where not known.
        peak: of one rank, operations a second; 0 where not known.
    """
    found = [_loss(runs), _speed(runs, speeds, peak)]
    over_time = [drawn for section in found for drawn in section.panels if not drawn.bars]
    if len(runs) > 1 and (panel := factor_panel(runs)):
        found.insert(1, panel)
    for number, run in enumerate(runs):
        whose = f" of {run.name}" if len(runs) > 1 else ""
        for section in _model(run, whose):
            section.open = number == 0
            found.append(section)
    for timed in over_time:
        for number, run in enumerate(runs):
            timed.marks += marks(run, happened[number], number if len(runs) > 1 else -1)
    return found


def _loss(runs: Sequence[RunData]) -> Section:
    training = Panel("loss", "Training loss", "nats per token", wide=True)
    validation = Panel("valid_loss", "Validation loss", "nats per token")
    norm = Panel("grad_norm", "Gradient norm, before clipping", "", log=True)
    rate = Panel("lr", "Learning rate", "")
    for number, run in enumerate(runs):
        training.lines.append(thinned(run, run.columns["loss"], run.name, band=True, colour=number))
        if np.isfinite(run.columns["valid_loss"]).any():
            validation.lines.append(
                scattered(run, run.columns["valid_loss"], run.name, colour=number)
            )
        norm.lines.append(
            thinned(run, run.columns["grad_norm"], run.name, band=True, colour=number)
        )
        rate.lines.append(thinned(run, run.columns["lr"], run.name, colour=number))
    text = (
        "Numbers on the curves are those of the list above. Pale bands reach from the smallest to "
        "the largest value of the steps that a point stands for. Drag to look closer, double click "
        "to come back."
    )
    return Section("Loss", text, _drawn([training, validation, norm, rate]))


def _speed(runs: Sequence[RunData], speeds: Sequence[float], peak: float) -> Section:
    throughput = Panel("throughput", "Throughput", "tokens/s")
    seconds = Panel("step_seconds", "Time of a step", "seconds", log=True)
    unit = "share of the peak" if peak else "TFLOP/s of all ranks"
    flops = Panel("mfu", "Model FLOPs utilisation" if peak else "Model FLOPs a second", unit)
    memory = Panel("memory", "Most memory of a rank", "GiB")
    whole = max((sum(s for _, s in time_lost(run)) for run in runs), default=0.0)
    size, unit_of_time = next(unit for unit in _UNITS if whole >= 2 * unit[0] or unit[0] == 1)
    lost = Panel("time", "What the time went into", unit_of_time, x_title=" ", bars=True)
    for number, run in enumerate(runs):
        took = run.columns["step_seconds"]
        rate = run.columns["tokens_per_second"]
        throughput.lines.append(thinned(run, rate, run.name, colour=number))
        seconds.lines.append(thinned(run, took, run.name, band=True, colour=number))
        if np.isfinite(speeds[number]):
            ranks = run.attempts[-1].ranks if run.attempts else 1
            unit_rate = peak * max(1, ranks) if peak else 1e12
            with np.errstate(divide="ignore"):
                made = speeds[number] / unit_rate / took
            flops.lines.append(thinned(run, made, run.name, colour=number))
        if line := vital(run, "memory_bytes", run.name, colour=number):
            line.y = [None if v is None else round(v / 2**30, 3) for v in line.y]
            memory.lines.append(line)
        causes = time_lost(run)
        hours: list[float | None] = [round(s / size, 4) for _, s in causes]
        lost.lines.append(Line(run.name, {"": [c for c, _ in causes]}, hours, colour=number))
    return Section("Speed", "", _drawn([throughput, seconds, flops, memory, lost]))


def _model(run: RunData, whose: str) -> Iterator[Section]:
    """What the model showed, from vitals.jsonl."""
    panels = [
        _by_layer(run, f"scales/{s}/{which}", f"{GREEK.get(s, s)}{told}, {word}")
        for s, told in SCALES.items()
        for which, word in (("mean", "mean"), ("max", "largest"))
    ]
    for which, title in (
        ("mean", "Scale of attention's logits, mean"),
        ("max", "Largest logit that there can be"),
    ):
        panels.append(_by_layer(run, f"logit_scale/{which}", title))
    if drawn := _drawn(panels):
        text = "What nGPT's learned scales are worth, mean and largest over the dimensions."
        layers = max(len(panel.lines) for panel in drawn)
        yield Section(f"Scales{whose}", text, drawn, layers=layers)
    angle = _by_kind(run, r"angle/(.+)/mean", "angle", "Angle of a step, mean", "radians")
    gradient = _by_kind(run, r"gradient/(.+)", "gradient", "Gradient norm by kind", "", log=True)
    sphere = Panel("sphere", "Distance of lengths from 1", "", log=True)
    names = {"stretch": "before the projection", "unit_error": "after it"}
    for colour, (key, name) in enumerate(names.items()):
        if line := vital(run, key, name, colour=colour):
            sphere.lines.append(line)
    if drawn := _drawn([angle, gradient, sphere]):
        yield Section(f"Motion{whose}", "What a step does to the vectors of each matrix.", drawn)
    yield from _spectra(run, whose)


def _spectra(run: RunData, whose: str) -> Iterator[Section]:
    final = Panel("condition_final", "Condition numbers by layer, newest", "", log=True)
    final.x_title = "layer"
    for colour, (kind, layers) in enumerate(_layers(run, r"condition/(.+)/layer_(\d+)").items()):
        values = [run.vitals[key].values[-1] for _, key in layers]
        x = {"": [float(layer) for layer, _ in layers]}
        final.lines.append(Line(kind, x, [round(v, 3) for v in values], colour, points=True))
    over = Panel("condition", "Condition numbers, median over layers", "", log=True)
    over.lines += _medians(run)
    panels = [over, final]
    for table, title in (
        ("embed", "Cosines of input embeddings"),
        ("head", "… of output embeddings"),
    ):
        panels.append(_cosines(run, table, title))
    spread = Panel("eigenvalues", "Eigenvalues of the embeddings over their median, newest", "")
    spread.x_title, spread.log = "smallest to largest, %", True
    for colour, table in enumerate(("embed", "head")):
        begin = f"eigenvalues/{table}/"
        keys = [n for n in run.vitals if n.startswith(begin) and "layer" not in n]
        if keys:
            at = {"": [float(name.removeprefix(begin)) for name in keys]}
            values = [max(1e-6, run.vitals[key].values[-1]) for key in keys]
            spread.lines.append(Line(table, at, [float(f"{v:.4g}") for v in values], colour))
    if drawn := _drawn([*panels, spread]):
        text = "Figures 4 and 5 of the nGPT paper, at the steps at which they were taken."
        yield Section(f"Spectra{whose}", text, drawn)


def _medians(run: RunData) -> Iterator[Line]:
    kinds = _layers(run, r"condition/(.+)/layer_(\d+)")
    for colour, (kind, layers) in enumerate(kinds.items()):
        line = vital(run, layers[0][1], kind, colour=colour, points=True)
        table = np.array([run.vitals[key].values for _, key in layers])
        if line is not None and table.shape[1] == len(line.y):
            line.y = [float(f"{v:.4g}") for v in np.median(table, axis=0)]
        if line is not None:
            yield line


def _cosines(run: RunData, table: str, title: str) -> Panel:
    panel = Panel(f"cosine_{table}", title, "cosine")
    pairs = [("0.5", "median", False), ("0.95", "95 %", True), ("0.05", "5 %", True)]
    pairs += [("1.0", "largest", True)]
    for colour, (quantile, name, dashed) in enumerate(pairs):
        key = f"cosine/{table}/quantiles/{quantile}"
        if line := vital(run, key, name, colour=colour, points=True, dashed=dashed):
            panel.lines.append(line)
    return panel


def _by_layer(run: RunData, key: str, title: str) -> Panel:
    """A line for each layer, in colours that say their order."""
    panel = Panel(key.replace("/", "_"), title, "")
    found = _layers(run, rf"({re.escape(key)})/layer_(\d+)").get(key, [])
    for layer, name in found:
        ramp = layer / max(1, len(found) - 1)
        if line := vital(run, name, f"layer {layer}", ramp=ramp):
            panel.lines.append(line)
    if not found and (line := vital(run, key, title)):
        panel.lines.append(line)
    return panel


def _by_kind(
    run: RunData, pattern: str, key: str, title: str, unit: str, log: bool = False
) -> Panel:
    panel = Panel(key, title, unit, log=log)
    matches = ((re.fullmatch(pattern, name), name) for name in run.vitals)
    for colour, (match, name) in enumerate((m, n) for m, n in matches if m):
        style = {"colour": colour, "dashed": colour >= COLOURS}
        if line := vital(run, name, match.group(1), **style):
            panel.lines.append(line)
    return panel


def _layers(run: RunData, pattern: str) -> dict[str, list[tuple[int, str]]]:
    """Names of figures by their kind: layer and name, in order."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in run.vitals:
        if match := re.fullmatch(pattern, name):
            found.setdefault(match.group(1), []).append((int(match.group(2)), name))
    return {kind: sorted(layers) for kind, layers in found.items()}


def _drawn(panels: Sequence[Panel]) -> list[Panel]:
    """Those that have something in them."""
    return [p for p in panels if any(any(v is not None for v in line.y) for line in p.lines)]
