"""From folders of runs to files of a report."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.config import load_config
from megatron_ngpt.estimate.propose import step_flops
from megatron_ngpt.report.events import moments
from megatron_ngpt.report.page import page
from megatron_ngpt.report.panels import sections
from megatron_ngpt.report.pictures import draw
from megatron_ngpt.report.reading import RunData, read_run
from megatron_ngpt.report.samples import add_samples, read_samples
from megatron_ngpt.report.verdict import Finding, marked, verdict


def write(
    paths: Sequence[Path],
    output: Path,
    *,
    prompts: Sequence[str] = (),
    peak: float = 0.0,
    again: float = 0.0,
    pictures: bool = True,
) -> list[tuple[RunData, list[Finding]]]:
    """Write ``report.html`` and the PNG files into a folder; returns the runs with their verdicts.

    Args:
        paths: folders of runs.
        output: made where it is not there.
        prompts: that the newest checkpoint of each run shall go on with.
        peak: operations a second that one rank could do at best; 0 where not known.
        again: seconds after which an open page loads itself again.
        pictures: whether to write PNG files.

    Raises:
        FileNotFoundError: a folder holds no run.
        ModuleNotFoundError: plotly or matplotlib is missing.
    """
    runs = [read_run(path, name) for path, name in zip(paths, names(paths), strict=True)]
    verdicts = [verdict(run) for run in runs]
    happened = [moments(run, marked(v)) for run, v in zip(runs, verdicts, strict=True)]
    found = sections(runs, happened, [_flops(run) for run in runs], peak)
    output.mkdir(parents=True, exist_ok=True)
    if prompts:
        add_samples(output, runs, prompts)
    text = page(runs, verdicts, happened, found, read_samples(output), again)
    fresh = output / ".report.html"
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, output / "report.html")  # a browser never reads half of it
    if pictures:
        draw(found, output)
    return list(zip(runs, verdicts, strict=True))


def names(paths: Sequence[Path]) -> list[str]:
    """What runs are called: their folders, with as many of those above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{n}: {path.name}" for n, path in enumerate(paths, 1)]


def _flops(run: RunData) -> float:
    """Operations of a step; nan where the run's settings cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError, SystemExit):
        return step_flops(load_config(run.path / "config.yaml"))
    return math.nan
