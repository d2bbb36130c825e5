"""Pictures of a study: losses, factors and learning rates. Sole user of matplotlib here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ngpt.extras import require
from megatron_ngpt.study.factor import mean_curve
from megatron_ngpt.study.plan import Study
from megatron_ngpt.study.summary import Outcome, compared


def draw(study: Study, found: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write loss.png, factor.png and rates.png into a folder; those for which there are runs."""
    folder.mkdir(parents=True, exist_ok=True)
    if not found:
        return []
    colours = {o.contestant.name: f"C{n}" for n, o in enumerate(found)}
    paths = [_losses(found, colours, folder / "loss.png")]
    if any(compared(study, found).values()):
        paths.append(_factors(study, found, colours, folder / "factor.png"))
    return [*paths, _rates(found, colours, folder / "rates.png")]


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "plot", "pictures of a study").Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> Path:
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    return path


def _losses(found: Sequence[Outcome], colours: dict[str, str], path: Path) -> Path:
    figure, axes = _figure("Validation loss", "tokens", "nats a token")
    for outcome in found:
        name, curve = outcome.contestant.name, mean_curve(outcome.curves)
        axes.plot(*curve.T, color=colours[name], label=f"{name}, {len(outcome.rows)} seeds")
        each = np.array([mean_curve([c])[:, 1] for c in outcome.curves])
        axes.fill_between(
            curve[:, 0], each.min(0), each.max(0), color=colours[name], alpha=0.2, lw=0
        )
    axes.set_xscale("log")
    return _save(figure, axes, path)


def _factors(study: Study, found: Sequence[Outcome], colours: dict[str, str], path: Path) -> Path:
    figure, axes = _figure(
        f"Times fewer tokens than {study.baseline} for its loss", f"tokens of {study.baseline}", ""
    )
    for name, values in compared(study, found).items():
        points = np.array([[f.tokens, f.factor, f.low, f.high] for f in values]).T
        axes.plot(points[0], points[1], color=colours[name], label=name)
        axes.fill_between(points[0], points[2], points[3], color=colours[name], alpha=0.2, lw=0)
    axes.axhline(1.0, color="0.5", lw=1)
    return _save(figure, axes, path)


def _rates(found: Sequence[Outcome], colours: dict[str, str], path: Path) -> Path:
    figure, axes = _figure("Learning rates", "log2 of the learning rate", "final validation loss")
    for outcome in found:
        name = outcome.contestant.name
        means = {x: float(np.mean(v)) for x, v in outcome.sweep.items()}
        axes.plot(list(means), list(means.values()), "o-", color=colours[name], label=name)
        for x, values in outcome.sweep.items():
            axes.plot([x] * len(values), values, "_", color=colours[name])
    return _save(figure, axes, path)
