"""The report as one HTML file that needs no network. Sole user of plotly, for its plotly.js."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ngpt.extras import require
from megatron_ngpt.report.compare import told
from megatron_ngpt.report.drawing import Section
from megatron_ngpt.report.events import Moment
from megatron_ngpt.report.reading import RunData
from megatron_ngpt.report.samples import Sample
from megatron_ngpt.report.verdict import Finding

_HERE = Path(__file__).parent


def page(
    runs: Sequence[RunData],
    verdicts: Sequence[Sequence[Finding]],
    happened: Sequence[Sequence[Moment]],
    sections: Sequence[Section],
    samples: Sequence[Sample],
    again: float = 0.0,
) -> str:
    """The whole file, 4.9 MB of which are plotly.js.

    Args:
        runs: what it is about.
        verdicts: on each of them.
        happened: to each of them.
        sections: the pictures.
        samples: generated texts, newest last.
        again: seconds after which the page loads itself again; 0 for never.

    Raises:
        ModuleNotFoundError: plotly is missing.
    """
    plotly = require("plotly.offline", "report", "a report as HTML").get_plotlyjs()
    # a text in it shall not end the script that it stands in
    data = json.dumps({**_drawn(sections), "again": again}).replace("</", "<\\/")
    title, several = ", ".join(run.name for run in runs), len(runs) > 1
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        "<link rel='icon' href='data:,'>",  # browsers ask for one otherwise
        f"<title>{escape(title)}</title><style>{_read('page.css')}</style></head><body><main>",
        _header(title),
        *(f"<p class='told'>{escape(line)}.</p>" for line in told(runs[0], runs[1:])),
        "<div class='verdicts'>",
        *(_verdict(run, found, several) for run, found in zip(runs, verdicts, strict=True)),
        "</div>",
        *(_facts(run, several) for run in runs),
        "<div class='histories'>",
        *(
            _moments(run, found, n if several else -1)
            for n, (run, found) in enumerate(zip(runs, happened, strict=True))
        ),
        "</div>",
        *_sections(sections),
        *_tables(runs),
        *_texts(samples),
        f"<footer>Written {time.strftime('%F %T')} by tools/report.py.</footer></main>",
        f"<script id='data' type='application/json'>{data}</script>",
        f"<script>{plotly}</script><script>{_read('page.js')}</script></body></html>",
    ]
    return "\n".join(parts)


def _drawn(sections: Sequence[Section]) -> dict[str, Any]:
    """Panels, whose lines name their places by number: most lines of a run share them."""
    places: dict[str, int] = {}
    panels = [panel.to_dict() for section in sections for panel in section.panels]
    for panel in panels:
        for line in panel["lines"]:
            line["x"] = {
                axis: places.setdefault(json.dumps(x), len(places)) for axis, x in line["x"].items()
            }
    return {"panels": panels, "places": [json.loads(text) for text in places]}


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _header(title: str) -> str:
    axes = "".join(
        f"<button data-axis='{axis}' aria-pressed='false'>{name}</button>"
        for axis, name in (("tokens", "tokens"), ("step", "steps"), ("hours", "time"))
    )
    themes = "".join(
        f"<button data-theme='{theme}' aria-pressed='false'>{theme}</button>"
        for theme in ("light", "dark")
    )
    controls = f"<div class='controls'><div>{axes}</div><div>{themes}</div></div>"
    return f"<header><h1>{escape(title)}</h1>{controls}</header>"


def _verdict(run: RunData, found: Sequence[Finding], named: bool) -> str:
    first, *rest = found
    lines = "".join(f"<li class='{f.level}'>{escape(f.text)}</li>" for f in rest)
    name = f"<h3>{escape(run.name)}</h3>" if named else ""
    return (
        f"<section class='verdict {first.level}'>{name}<strong>{escape(first.text)}</strong>"
        f"<ul>{lines}</ul></section>"
    )


def _facts(run: RunData, named: bool) -> str:
    """The newest numbers."""
    columns = run.columns
    goal = f"of {run.goal:,} steps" if run.goal else "steps"
    facts = [(goal, f"{columns['step'][-1]:,.0f}" if run.steps else "0")]
    for name, word, shape in (
        ("tokens", "tokens", ",.3s"),
        ("loss", "training loss", ".4f"),
        ("valid_loss", "validation loss", ".4f"),
        ("tokens_per_second", "tokens/s", ",.0f"),
    ):
        known = columns[name][columns[name] == columns[name]]
        if len(known):
            value = float(np.median(known[-100:]) if name == "tokens_per_second" else known[-1])
            facts.append((word, short(value) if shape == ",.3s" else format(value, shape)))
    facts.append(("starts", str(len(run.attempts))))
    facts.append(("since the first start", lasting(run.hours[-1] if run.steps else 0.0)))
    if run.steps > 1 and run.goal > columns["step"][-1] and run.lives == "alive":
        some = min(500, run.steps - 1)
        each = (run.hours[-1] - run.hours[-1 - some]) / some
        facts.append(("to go, at this speed", lasting(each * (run.goal - columns["step"][-1]))))
    cards = "".join(
        f"<div><b>{escape(value)}</b><span>{name}</span></div>" for name, value in facts
    )
    title = f"<h3 class='of'>{escape(run.name)}</h3>" if named else ""
    return f"{title}<div class='facts'>{cards}</div>"


def lasting(hours: float) -> str:
    """A time as a person says it."""
    for size, unit in ((24.0, "days"), (1.0, "h"), (1 / 60, "min")):
        if hours >= 2 * size:
            return f"{hours / size:.1f} {unit}"
    return f"{hours * 3600:.0f} s"


def short(value: float) -> str:
    """A count in thousands, millions, billions."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:.0f}"


def _moments(run: RunData, found: Sequence[Moment], colour: int) -> str:
    """What happened, under the numbers that stand on the curves."""
    if not found:
        return ""
    lines = []
    for moment in found:
        tone = f"data-colour='{colour}'" if colour >= 0 else f"class='{moment.kind}'"
        what = "<br>".join(map(escape, moment.texts))
        lines.append(
            f"<li><i {tone}>{moment.number}</i><span>step {moment.step:,.0f}</span>"
            f"<div>{what}</div></li>"
        )
    whose = f" to {escape(run.name)}" if colour >= 0 else ""
    return (
        f"<details class='moments' open><summary><h2>What happened{whose}</h2></summary>"
        f"<ul>{''.join(lines)}</ul></details>"
    )


def _ramp(layers: int) -> str:
    """Which colour is which layer."""
    return f"<p class='ramp'>layer 0 <i></i> layer {layers - 1}</p>" if layers > 1 else ""


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    number = 0
    for section in sections:
        cards = []
        left = [panel for panel in section.panels if not panel.wide]
        for panel in section.panels:
            # none stands alone in its row
            wide = " wide" if panel.wide or (len(left) % 2 and panel is left[-1]) else ""
            unit = f" <small>{escape(panel.unit)}</small>" if panel.unit and not panel.bars else ""
            cards.append(
                f"<div class='panel{wide}'><h3>{escape(panel.title)}{unit}</h3>"
                f"<div class='plot' data-panel='{number}'></div></div>"
            )
            number += 1
        text = f"<p>{escape(section.text)}</p>" if section.text else ""
        text += _ramp(section.layers)
        state = " open" if section.open else ""
        yield (
            f"<details{state}><summary><h2>{escape(section.title)}</h2></summary>{text}"
            f"<div class='panels'>{''.join(cards)}</div></details>"
        )


def _tables(runs: Sequence[RunData]) -> Iterator[str]:
    for run in runs:
        whose = f" of {run.name}" if len(runs) > 1 else ""
        starts = [
            [
                str(a.number),
                time.strftime("%F %T", time.localtime(a.started)),
                a.job or "-",
                str(a.ranks),
                f"{a.resumed_at} to {a.step}" if a.resumed_at >= 0 else "none",
                f"{a.reason or 'runs'} {a.detail}",
            ]
            for a in run.attempts
        ]
        header = ["start", "at", "job", "ranks", "steps", "ended by"]
        yield _table(f"Starts{whose}", header, starts)
        saved = [
            [f"{step:,}", time.strftime("%F %T", time.localtime(when)), f"{size / 2**20:,.1f} MiB"]
            for step, when, size in reversed(run.saved)
        ]
        yield _table(f"Checkpoints{whose}", ["step", "saved at", "size"], saved)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = []
    for row in rows:
        *some, last = (escape(value) for value in row)
        cells = "".join(f"<td>{value}</td>" for value in some)
        body.append(f"<tr>{cells}<td class='text'>{last}</td></tr>")
    return (
        f"<details open><summary><h2>{escape(title)}</h2></summary><div class='table'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _texts(samples: Sequence[Sample]) -> Iterator[str]:
    if samples:
        yield "<details open><summary><h2>Generated text</h2></summary>"
        for sample in reversed(samples):
            text = sample.text.removeprefix(sample.prompt)
            yield (
                f"<h3>{escape(sample.run)} <small>step {sample.step:,}</small></h3>"
                f"<blockquote><b>{escape(sample.prompt)}</b>{escape(text)}</blockquote>"
            )
        yield "</details>"
