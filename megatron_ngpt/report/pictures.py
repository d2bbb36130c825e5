"""The report's pictures as PNG files, a file for each section, without a browser. By matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ngpt.extras import require
from megatron_ngpt.report.drawing import Line, Panel, Section

_COLOURS = ("#2463c4", "#c2570c", "#0c8a5b", "#b4235a", "#7040c0", "#0b7f95", "#8a6d00", "#4d5b6c")
_TONES = {
    "restart": "#2563a8",
    "topology": "#9a5b00",
    "settings": "#9a5b00",
    "fault": "#b3261e",
    "bad": "#b3261e",
    "warn": "#9a5b00",
}


def draw(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write a PNG for each section into a folder, over tokens.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    return [_section(section, folder) for section in sections]


def _section(section: Section, folder: Path) -> Path:
    figures, colormaps = require("matplotlib.figure", "report", "pictures"), _colormap()
    rows = -(-len(section.panels) // 2)
    columns = min(2, len(section.panels))
    size = (6.2 * columns, 3.3 * rows)
    figure = figures.Figure(figsize=size)
    # layout engines draw everything twice to see how wide its numbers are
    left, right = 0.75 / size[0], 1 - 0.15 / size[0]
    figure.subplots_adjust(
        left, 0.55 / size[1], right, 1 - 0.3 / size[1], wspace=0.2, hspace=0.8 / 2.4
    )
    for number, panel in enumerate(section.panels):
        _panel(figure.add_subplot(rows, columns, number + 1), panel, colormaps)
    name = re.sub(r"\W+", "_", section.title.lower()).strip("_")
    figure.savefig(folder / f"{name}.png", dpi=110)
    return folder / f"{name}.png"


def _panel(axes: Any, panel: Panel, ramp: Any) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.grid(alpha=0.25)
    for line in panel.lines:
        colour = ramp(0.05 + 0.85 * line.ramp) if line.ramp >= 0 else _COLOURS[line.colour % 8]
        if panel.bars:
            axes.barh(line.x[""], line.y, color=colour, label=line.name, alpha=0.8)
        else:
            _curve(axes, line, colour)
    for mark in panel.marks:
        tone = _COLOURS[mark.colour % 8] if mark.colour >= 0 else _TONES.get(mark.kind, "0.6")
        axes.axvline(mark.x["tokens"], color=tone, lw=0.8, ls="--")
        at = (mark.x["tokens"], 0.99)
        axes.annotate(
            str(mark.number), at, xycoords=("data", "axes fraction"), color=tone, fontsize=7,
            ha="left", va="top", xytext=(2, 0), textcoords="offset points",
        )  # fmt: skip
    if panel.bars:
        axes.invert_yaxis()
    elif panel.log:
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.set_xlabel(panel.x_title.strip() or ("hours" if panel.bars else "tokens"), fontsize=9)
    axes.set_ylabel("" if panel.bars else panel.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    if len(panel.lines) > 1 and panel.lines[0].ramp < 0:
        axes.legend(fontsize=7, frameon=False, ncols=2)


def _curve(axes: Any, line: Line, colour: Any) -> None:
    x = line.x.get("") or line.x["tokens"]
    known = [(a, b) for a, b in zip(x, line.y, strict=True) if b is not None]
    style = ":" if line.dashed else "-"
    axes.plot(
        *zip(*known, strict=True), style, color=colour, label=line.name, lw=1.3,
        marker="o" if line.points else None, ms=3,
    )  # fmt: skip
    if line.low:
        axes.fill_between(x, line.low, line.high, color=colour, alpha=0.18, lw=0)


def _colormap() -> Any:
    return require("matplotlib", "report", "pictures").colormaps["viridis"]
