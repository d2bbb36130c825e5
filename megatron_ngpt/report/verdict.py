"""Whether a run is healthy, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_ngpt.report.events import Event, corpus_tokens
from megatron_ngpt.report.reading import Column, RunData, now

Level = Literal["good", "note", "warn", "bad"]
_ORDER = ("bad", "warn", "good", "note")
WINDOW = 100
"""Losses that a loss is measured by."""
DEVIATIONS = 8.0
_ENDED = {
    "done": "Finished at",
    "signal": "Stopped by a signal, saved at",
    "walltime": "Stopped before its time limit, saved at",
}
SLOWER = 1.2


@dataclass(frozen=True)
class Finding:
    """One sentence about a run."""

    level: Level
    text: str
    step: float = math.nan
    """Where it began, if it began somewhere."""


def marked(findings: Sequence[Finding]) -> list[Event]:
    """Those that begin somewhere, for pictures."""
    return [Event(f.step, f.level, f.text) for f in findings if math.isfinite(f.step)]


def verdict(run: RunData) -> list[Finding]:
    """What there is to say, the worst first; never empty."""
    found = [*_state(run), *_not_finite(run), *_spikes(run), *_slower(run), *_repeated(run)]
    found += [*_rising(run), *_off_the_sphere(run), *_faults(run)]
    if not any(finding.level in ("bad", "warn") for finding in found):
        if run.steps > 2 * WINDOW:
            found.append(
                Finding("good", "Healthy: no spike in the loss, and steps take as long as ever")
            )
        else:
            found.append(Finding("good", f"Nothing wrong in its first {run.steps} steps"))
    return sorted(found, key=lambda finding: _ORDER.index(finding.level))


def _state(run: RunData) -> Iterator[Finding]:
    last = run.attempts[-1] if run.attempts else None
    step = int(run.columns["step"][-1]) if run.steps else 0
    goal = f" of {run.goal:,}" if run.goal else ""
    if last and last.reason in _ENDED:
        yield Finding("note", f"{_ENDED[last.reason]} step {step:,}{goal}")
    elif last and last.reason:
        detail = f" ({last.detail})" if last.detail else ""
        yield Finding("bad", f"Not running: ended by {last.reason} at step {step:,}{detail}")
    elif run.lives == "free" and last:
        yield Finding("bad", f"Stale: its process is gone since step {step:,}")
    else:
        silent = now() - run.newest
        usual = float(np.nanmedian(run.columns["step_seconds"][-WINDOW:])) if run.steps else 60.0
        if silent > max(300.0, 20 * usual):
            yield Finding(
                "bad", f"Stale: no step for {silent / 60:.0f} minutes, since step {step:,}"
            )
        else:
            yield Finding("note", f"Running, at step {step:,}{goal}")


def _not_finite(run: RunData) -> Iterator[Finding]:
    bad = ~np.isfinite(run.columns["loss"])
    if bad.any():
        step = run.columns["step"][bad][0]
        yield Finding("bad", f"The loss is not a number at step {step:,.0f}", step)


def scores(loss: Column) -> Column:
    """Robust z-score of every loss by the WINDOW before it; 0 for the first ones."""
    found = np.zeros(len(loss))
    if len(loss) > WINDOW:
        windows = np.lib.stride_tricks.sliding_window_view(loss, WINDOW)[:-1]
        for at in range(0, len(windows), 4096):  # a copy of some at a time
            some = windows[at : at + 4096]
            middle = np.median(some, axis=1)
            spread = 1.4826 * np.median(np.abs(some - middle[:, None]), axis=1)
            own = loss[WINDOW + at : WINDOW + at + len(some)]
            spread = np.maximum(spread, 0.005 * np.abs(middle))  # nearly constant losses
            found[WINDOW + at : WINDOW + at + len(some)] = (own - middle) / spread
    return found


def _spikes(run: RunData) -> Iterator[Finding]:
    """Runs of losses far above those before, as one each."""
    loss, steps = run.columns["loss"], run.columns["step"]
    high = np.flatnonzero(scores(np.nan_to_num(loss, posinf=1e3)) > DEVIATIONS)
    clusters = np.split(high, np.flatnonzero(np.diff(high) > WINDOW) + 1) if len(high) else []
    for cluster in clusters[:5]:
        first = int(cluster[0])
        before = float(np.median(loss[first - WINDOW : first]))
        peak = float(loss[cluster].max())
        # of 20 steps, for a single one may be low by chance
        few = min(20, len(loss) - first)
        after_it = np.median(np.lib.stride_tricks.sliding_window_view(loss[first:], few), axis=1)
        low = np.flatnonzero(after_it <= before * 1.01)
        after = f", back after {int(low[0])} steps" if len(low) else ", and it has not come back"
        text = f"Spike at step {steps[first]:,.0f}: loss {before:.3f} → {peak:.3f}{after}"
        yield Finding("warn" if len(low) else "bad", text, float(steps[first]))
    if len(clusters) > 5:
        yield Finding("warn", f"{len(clusters) - 5} more spikes")


def _slower(run: RunData) -> Iterator[Finding]:
    """A step from which on steps take longer, up to now."""
    seconds = run.columns["step_seconds"]
    blocks = np.array_split(np.arange(len(seconds)), 40) if len(seconds) >= 200 else []
    medians = np.array([np.nanmedian(seconds[block]) for block in blocks])
    best, since = SLOWER, -1
    for cut in range(4, len(medians) - 2):
        before, after = np.median(medians[:cut]), medians[cut:]
        ratio = float(np.median(after) / before)
        if ratio > best and (after > before * (1 + (SLOWER - 1) / 2)).mean() > 0.9:
            best, since = ratio, cut
    if since >= 0:
        step = float(run.columns["step"][blocks[since][0]])
        before = float(np.median(medians[:since]))
        text = f"Slower since step {step:,.0f}: {best:.2f} times as long as before ({before:.3g} s)"
        yield Finding("warn", text, step)


def _repeated(run: RunData) -> Iterator[Finding]:
    size, tokens = corpus_tokens(run), run.columns["tokens"]
    if size and run.steps and tokens[-1] > size:
        step = float(run.columns["step"][np.argmax(tokens > size)])
        times = f"the corpora were read {tokens[-1] / size:.1f} times"
        text = f"Data repeated since step {step:,.0f}: {times}"
        yield Finding("note", text, step)
    for entry in run.ledger:
        if entry.accepted:
            names = ", ".join(entry.accepted)
            text = f"Data repeated from step {entry.step:,} on: {names} was changed"
            yield Finding("warn", text, entry.step)


def _rising(run: RunData) -> Iterator[Finding]:
    """Validation that has been better."""
    known = np.isfinite(run.columns["valid_loss"])
    losses, steps = run.columns["valid_loss"][known], run.columns["step"][known]
    if len(losses) >= 4:
        least = int(np.argmin(losses))
        if least < len(losses) - 3 and losses[-1] > losses[least] * 1.02:
            text = f"Validation loss was best at step {steps[least]:,.0f}: "
            text += f"{losses[least]:.3f} then, {losses[-1]:.3f} now"
            yield Finding("warn", text, float(steps[least]))


def _off_the_sphere(run: RunData) -> Iterator[Finding]:
    errors = [run.columns["unit_error"]]
    if "unit_error" in run.vitals:
        errors.append(np.asarray(run.vitals["unit_error"].values, dtype=np.float64))
    most = max((float(np.nanmax(e)) for e in errors if np.isfinite(e).any()), default=0.0)
    if most > 1e-4:
        yield Finding("bad", f"Off the sphere: a vector was {most:.1g} from length 1")


def _faults(run: RunData) -> Iterator[Finding]:
    if run.faults:
        last = run.faults[-1]
        many = f"{len(run.faults)} steps were" if len(run.faults) > 1 else "One step was"
        text = f"{many} refused; the last: step {last.step:,}, {last.problem} ({last.action})"
        yield Finding("warn", text)
