"""A study as a file: who is compared, at which learning rates and seeds, and what is still to run.

Settings of every run are those of ``base``, then the contestant's, then its learning rate and seed.
A run is known by a digest of exactly these and of its corpus, so that a row of results stays valid
while the file says the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One kind of model or optimizer, with the learning rates it is tried at."""

    name: str
    settings: Settings
    """Sections of the configuration that differ from the study's base."""
    log2_lr: float
    """Where the search for its learning rate begins, log2."""


@dataclass(frozen=True)
class Run:
    """One training run of a study."""

    contestant: str
    log2_lr: float
    seed: int
    settings: Settings
    """Whole nested configuration, without paths."""
    corpus: str
    """Digest of the tokens it reads."""

    @property
    def id(self) -> str:
        """Digest of settings and corpus: the same run has the same everywhere."""
        whole = json.dumps([self.settings, self.corpus], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Its folder's name, for people."""
        return f"{self.contestant}_lr2^{self.log2_lr:g}_seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """What a study's file says; see docs/studies.md."""

    name: str
    question: str
    """One sentence: what it is to find out."""
    baseline: str
    """The contestant that factors are relative to."""
    base: Settings
    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...]
    """Of the best learning rate and its neighbours; the first one also of the search."""
    per_octave: int = 2
    """Learning rates tried per factor of two."""
    neighbours: int = 1
    """Learning rates on each side of the best that get every seed."""
    vocab_size: int = 4096
    """Pieces of the tokenizer that is trained on the study's text."""
    lengths: tuple[int, ...] = ()
    """Tokens to which the finished model is evaluated on whole documents."""
    stretched: tuple[str, ...] = ()
    """Scalings of the rotary embedding tried at lengths above the run's own."""
    spectra: bool = False
    """Whether condition numbers and scaling vectors of the finished model are kept."""
    limit: int = 16
    """Learning rates after which a search gives up."""
    overrides: Mapping[str, Settings] = field(default_factory=dict)
    """Named variations of the base for whole studies of another size, such as a toy."""

    def run(self, contestant: Contestant, log2_lr: float, seed: int, corpus: str) -> Run:
        """The run of a contestant at a learning rate with a seed."""
        own = {"optim": {"lr": 2.0**log2_lr}, "train": {"seed": seed}}
        settings = merged(merged(self.base, contestant.settings), own)
        return Run(contestant.name, log2_lr, seed, settings, corpus)


def merged(under: Settings, over: Settings) -> dict[str, Any]:
    """Nested settings, the second winning key by key."""
    result = dict(under)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = merged(before, value)
        else:
            result[key] = value
    return result


def load_study(path: str | Path, variation: str = "") -> Study:
    """Read a study's file.

    Args:
        path: YAML, its keys the fields of :class:`Study`; ``contestants`` maps names to
            ``{log2_lr, settings}``.
        variation: name of an entry of ``overrides`` that replaces top-level keys and is merged
            over ``base``.

    Raises:
        ValueError: naming the file, the key and the way out.
    """
    content = _mapping(path)
    if variation:
        found = content.get("overrides", {})
        if variation not in found:
            raise ValueError(f"{path}: no variation {variation!r} in overrides; has {list(found)}")
        content = merged(content, found[variation])
    known = set(Study.__dataclass_fields__)
    if unknown := sorted(set(content) - known):
        raise ValueError(f"{path}: unknown key {unknown[0]}: known are {sorted(known)}")
    for key in ("name", "question", "baseline", "base", "contestants", "seeds"):
        if not content.get(key):
            raise ValueError(f"{path}: {key} is missing: every study says it")
    contestants = tuple(_contestant(path, *item) for item in content["contestants"].items())
    if content["baseline"] not in {c.name for c in contestants}:
        raise ValueError(f"{path}: baseline = {content['baseline']}: is none of the contestants")
    lists = {name: tuple(content.get(name, ())) for name in ("seeds", "lengths", "stretched")}
    return Study(**{**content, "contestants": contestants, **lists})


def _mapping(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as err:
        raise ValueError(f"{path}: not readable as a study: {err}") from err
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a study is a mapping of settings, see docs/studies.md")
    return content


def _contestant(path: str | Path, name: str, content: Any) -> Contestant:
    if not isinstance(content, dict) or set(content) - {"log2_lr", "settings"}:
        raise ValueError(f"{path}: contestants.{name}: has log2_lr and settings, nothing else")
    if "log2_lr" not in content:
        raise ValueError(f"{path}: contestants.{name}.log2_lr is missing: where the search begins")
    return Contestant(name, content.get("settings") or {}, float(content["log2_lr"]))


Losses = Mapping[str, float]
"""Final validation loss by a run's id; infinite where training diverged."""


def missing(study: Study, losses: Losses, corpus: str) -> list[Run]:
    """Runs that can be started now: of the searches, then of the seeds around the best.

    Contestants take turns, so that a study that is ended early has something of everybody. Empty
    when the study is finished.
    """
    searches: list[list[Run]] = []
    repeats: list[list[Run]] = []
    for contestant in study.contestants:
        if wanted := _searching(study, contestant, losses, corpus):
            searches.append(wanted)
        else:
            repeats.append(_repeating(study, contestant, losses, corpus))
    return [*_in_turns(searches), *_in_turns(repeats)]


def _in_turns(runs: Sequence[Sequence[Run]]) -> Iterator[Run]:
    for turn in itertools.zip_longest(*runs):
        yield from (run for run in turn if run is not None)


def searched(
    study: Study, contestant: Contestant, losses: Losses, corpus: str
) -> dict[float, float]:
    """Losses of the first seed by log2 of the learning rate, as far as they are known."""
    points = {}
    for rate in _rates(study):
        run = study.run(contestant, rate, study.seeds[0], corpus)
        if run.id in losses:
            points[run.log2_lr] = losses[run.id]
    return points


def _searching(study: Study, contestant: Contestant, losses: Losses, corpus: str) -> list[Run]:
    """Until the best learning rate has neighbours on both sides; they are tried together."""
    step = 1 / study.per_octave
    known = searched(study, contestant, losses, corpus)
    start = round(contestant.log2_lr * study.per_octave) / study.per_octave
    best = min(known, key=known.__getitem__) if known else start
    wanted = [x for x in (best + n * step for n in _nearest(study.neighbours)) if x not in known]
    room = max(0, study.limit - len(known))
    return [study.run(contestant, x, study.seeds[0], corpus) for x in wanted[:room]]


def _nearest(neighbours: int) -> list[int]:
    """0, -1, 1, -2, ..."""
    return sorted(range(-neighbours, neighbours + 1), key=abs)


def _repeating(study: Study, contestant: Contestant, losses: Losses, corpus: str) -> list[Run]:
    runs = around_best(study, contestant, losses, corpus)
    return [run for run in runs if run.id not in losses]


def around_best(study: Study, contestant: Contestant, losses: Losses, corpus: str) -> list[Run]:
    """All seeds of the best learning rate of the search, then of its neighbours."""
    known = searched(study, contestant, losses, corpus)
    if not known:
        return []
    best, step = min(known, key=known.__getitem__), 1 / study.per_octave
    rates = [best + n * step for n in _nearest(study.neighbours)]
    # a search that gave up has no neighbour on one side
    return [study.run(contestant, x, s, corpus) for x in rates if x in known for s in study.seeds]


def every_run(study: Study, ids: Container[str], corpus: str) -> Iterator[Run]:
    """The runs of a study that are among these ids, contestant by contestant."""
    for contestant in study.contestants:
        for n in _rates(study):
            for seed in study.seeds:
                run = study.run(contestant, n, seed, corpus)
                if run.id in ids:
                    yield run


def _rates(study: Study) -> Iterator[float]:
    """Every learning rate of the grid, log2."""
    return (n / study.per_octave for n in range(-40 * study.per_octave, 8 * study.per_octave))
