"""What another start changes of a run so far, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from megatron_ngpt.run.ledger import Entry

_PERMUTED = "the data are permuted anew in mid-run: tokens repeat and others are never read"
_LATER = "steps from here on follow it, those before did not"
_ROUNDING = "computes the same, up to the order of summation"
_NOTHING = "changes nothing of what is computed"
_VALIDATION = "validation losses before and after do not compare"

BREAKS = {
    "train.seed": _PERMUTED,
    "data.shuffle_unit": _PERMUTED,
    "data.seq_len": _PERMUTED,
    "data.valid_fraction": f"another part of every corpus is held back: {_PERMUTED}",
    "data.valid": f"another part of every corpus is held back: {_PERMUTED}",
}
"""What breaks the promise that every token is read once before any is read again."""

CONSEQUENCES = {
    **{f"optim.{name}": _LATER for name in ("", "reference_steps")},
    "optim.zero_stage": _ROUNDING,
    "model.": _LATER,
    "model.reference_": "the learning rate of later steps follows it",
    "train.": _NOTHING,
    "train.steps": "the schedule has another length, so the learning rate of later steps changes",
    "train.global_batch": "a step takes another number of tokens; schedules go on counting steps",
    "train.dtype": "later steps are computed in another precision",
    **{f"train.{name}": _LATER for name in ("on_", "spike_")},
    **{f"train.{name}": _ROUNDING for name in ("micro_batch", "elastic", "mlp_tile", "loss_chunk")},
    **{f"train.{name}": _ROUNDING for name in ("recompute", "offload", "compile", "deterministic")},
    "data.": _LATER,
    **{f"data.{name}": _NOTHING for name in ("cache_dir", "prefetch", "tokenizer")},
    "data.seq_len": "later sequences have another length; no token repeats (data.shuffle_unit)",
    "data.valid": _VALIDATION,
    "data.train": "the same corpora, at another place or by another name",
    "data.stages": "what has been read so far is the same; later stages follow it",
    "parallel.": _ROUNDING,
    "engine.": _ROUNDING,
    "eval.": _VALIDATION,
    "eval.every": _NOTHING,
    "checkpoint.": _NOTHING,
    "logging.": _NOTHING,
}
"""By the beginning of a setting's name; the longest that fits counts."""


OF_ONE_START = {
    *("train.stop_at", "train.exit_after", "train.accept_changes"),
    *("checkpoint.start_over", "logging.owner_wait"),
}
"""Settings that say nothing of the run."""


@dataclass(frozen=True)
class Change:
    """A setting, or a fact of the start, that is not as it was."""

    name: str
    old: Any
    new: Any
    consequence: str
    breaks: bool = False

    def __str__(self) -> str:
        values = " -> ".join(shorten(str(value), 90) for value in (self.old, self.new))
        return f"{self.name}: {values}: {self.consequence}"


def changes(old: Entry, new: Entry, defaults: dict[str, Any], tokens: int) -> list[Change]:
    """All of them, those that break a guarantee first.

    Args:
        old: what was in force for the steps so far.
        new: this start.
        defaults: of settings that an older version did not have.
        tokens: consumed so far; stages after them may change.
    """
    found = [*_settings(old, new, defaults), *_data(old, new, tokens), *_surroundings(old, new)]
    return sorted(found, key=lambda change: not change.breaks)


def _settings(old: Entry, new: Entry, defaults: dict[str, Any]) -> Iterator[Change]:
    was = {**defaults, **old.settings}
    for name, value in new.settings.items():
        if was.get(name) != value and name not in OF_ONE_START:
            broken = _breaks(name, was, new.settings)
            why = BREAKS[name] if broken else consequence(name)
            yield Change(name, was.get(name), value, why, broken and old.known)


def consequence(name: str) -> str:
    """What follows when a setting that breaks nothing is another one."""
    fits = [start for start in CONSEQUENCES if name.startswith(start)]
    return CONSEQUENCES[max(fits, key=len)] if fits else _LATER


def _breaks(name: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    if name in ("data.shuffle_unit", "data.seq_len"):
        return _unit(old) != _unit(new)
    if name in ("data.valid", "data.valid_fraction"):
        return _held_back(old) != _held_back(new)
    return name in BREAKS


def _unit(settings: dict[str, Any]) -> int:
    """Tokens that are shuffled together."""
    return int(settings["data.shuffle_unit"] or settings["data.seq_len"])


def _held_back(settings: dict[str, Any]) -> float:
    """Share of each training corpus that is not trained on."""
    return 0.0 if settings["data.valid"] else float(settings["data.valid_fraction"])


def _data(old: Entry, new: Entry, tokens: int) -> Iterator[Change]:
    """Training corpora so far, by what is in them and not by where they lie."""
    if not old.corpora:
        return
    was, now = (_read_so_far(entry.corpora, tokens) for entry in (old, new))
    begun, begin = ([blend["first_token"] for blend in blends] for blends in (was, now))
    if begun != begin:
        yield Change("data.stages", begun, begin, f"stages that have begun: {_PERMUTED}", True)
        return
    for before, after in zip(was, now, strict=True):
        setting, ours, theirs = after["setting"], before["corpora"], after["corpora"]
        pairs = zip(ours, theirs, strict=False)
        if len(ours) != len(theirs) or not all(same(one, other) for one, other in pairs):
            yield Change(setting, _told(ours), _told(theirs), f"other corpora: {_PERMUTED}", True)
        elif _shares(ours) != _shares(theirs):
            weights = _shares(ours), _shares(theirs)
            yield Change(f"{setting} weights", *weights, f"another blend: {_PERMUTED}", True)


def _read_so_far(blends: Sequence[dict[str, Any]], tokens: int) -> list[dict[str, Any]]:
    return [blend for blend in blends if blend["first_token"] < max(1, tokens)]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two corpora hold the same tokens, as far as both say."""
    a, b = one["identity"], other["identity"]
    return all(a[key] == b[key] for key in a.keys() & b.keys())


def _shares(corpora: Sequence[dict[str, Any]]) -> list[float]:
    total = sum(corpus["weight"] for corpus in corpora)
    return [round(corpus["weight"] / total, 12) for corpus in corpora]


def _told(corpora: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{c['name']} ({c['identity']['tokens']:,} tokens)" for c in corpora)


def _surroundings(old: Entry, new: Entry) -> Iterator[Change]:
    if not old.known:
        return
    if old.code != new.code:
        yield Change("code", old.code, new.code, "later steps may be computed otherwise")
    for name in sorted(old.packages.keys() | new.packages.keys()):
        was, now = (entry.packages.get(name, "none") for entry in (old, new))
        if was != now:
            yield Change(name, was, now, "later steps may differ in their last bits")
    for name in sorted(old.topology.keys() | new.topology.keys()):
        if (had := old.topology.get(name)) != (has := new.topology.get(name)):
            yield Change(name, had, has, _ROUNDING)


def refuse(found: Sequence[Change], accepted: Sequence[str], step: int) -> None:
    """Refuse what breaks a guarantee and was not accepted by name.

    Raises:
        ValueError: naming every such setting.
    """
    broken = [change for change in found if change.breaks and name_of(change) not in accepted]
    if broken:
        names = ", ".join(dict.fromkeys(name_of(change) for change in broken))
        raise ValueError(
            f"the run stands at step {step} and cannot go on as it was promised to:\n"
            + "\n".join(f"  - {change}" for change in broken)
            + "\nSet them back, or choose another logging.dir for a new run; to go on all the "
            f"same: --train.accept_changes '[{names}]'"
        )


def name_of(change: Change) -> str:
    """The setting, as train.accept_changes names it."""
    return change.name.partition(" ")[0]
