"""Folders of runs that never ran, with all that a report reads, of any length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ngpt.config import Config, ModelConfig, TrainConfig, save_config
from megatron_ngpt.run.ledger import flat, plain

BEGAN = 1_700_000_000.0
"""When every such run started, seconds since 1970."""
MATRICES = (
    *("attention.query", "attention.key", "attention.value", "attention.output"),
    *("mlp.up", "mlp.gate", "mlp.down"),
)
SCALES = ("alpha_attention", "alpha_mlp", "s_qk", "s_u", "s_v")


@dataclass(frozen=True, kw_only=True)
class Story:
    """What becomes of a run."""

    steps: int = 1000
    layers: int = 8
    seed: int = 0
    faster: float = 1.0
    """Times fewer tokens for the same loss."""
    step_seconds: float = 1.0
    slower: tuple[int, float] = (0, 1.0)
    """From which step on each takes how many times as long."""
    spike: tuple[int, float] = (0, 0.0)
    """From which step on for 30 steps the loss is how much higher."""
    killed: Sequence[int] = ()
    """Steps at which it was killed; the last checkpoint was taken a hundred steps before."""
    settings: Sequence[dict[str, Any]] = ()
    """What differs in the ledger for each start after the first, by dotted name."""
    vitals_every: int = 10
    spectra_every: int = 500
    corpus: int = 10**12
    """Tokens of the corpus."""
    reason: str = "done"
    faults: Sequence[dict[str, Any]] = field(default_factory=list)


def write_run(folder: Path, story: Story) -> Path:
    """Write a run's folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Config(
        model=ModelConfig(width=64, layers=story.layers, heads=4, vocab_size=512),
        train=TrainConfig(steps=story.steps),
    )
    save_config(config, folder / "config.yaml")
    _lines(folder / "metrics.jsonl", _metrics(story))
    if story.vitals_every:
        _lines(folder / "vitals.jsonl", _vitals(story))
    _lines(folder / "attempts.jsonl", _attempts(story, folder))
    _lines(folder / "ledger.jsonl", _ledger(story, config))
    if story.faults:
        _lines(folder / "faults.jsonl", story.faults)
    return folder


def loss_at(tokens: Any, faster: float = 1.0) -> Any:
    """Of such a run, without noise."""
    return 2.0 + 8.0 * (1.0 + tokens * faster / 1e5) ** -0.35


def _lines(path: Path, records: Any) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def _metrics(story: Story) -> Iterator[dict[str, Any]]:
    noise = np.random.default_rng(story.seed).normal(size=(story.steps + 1, 3))
    since, factor = story.slower
    first, more = story.spike
    for step in range(1, story.steps + 1):
        tokens = step * 4096
        loss = float(loss_at(tokens, story.faster))
        took = story.step_seconds * (1 + 0.02 * abs(noise[step, 0]))
        took *= factor if since and step >= since else 1.0
        high = more * (1 - (step - first) / 30) if first and first <= step < first + 30 else 0.0
        record = {
            "step": step,
            "loss": loss + 0.02 * noise[step, 1] + high,
            "grad_norm": float(np.exp(0.2 * noise[step, 2])) * 0.4,
            "lr": 1e-2 * 0.5 * (1 + np.cos(np.pi * step / story.steps)),
            "tokens": tokens,
            "tokens_per_second": 4096 / took,
            "step_seconds": took,
        }
        if step % 100 == 0:
            record["valid_loss"] = loss + 0.05
        if step % 500 == 0:
            record["unit_error"] = 2e-7
        yield record


def _vitals(story: Story) -> Iterator[dict[str, Any]]:
    every, spectra = story.vitals_every, story.spectra_every
    for step in range(every, story.steps + 1, every):
        layers = 1 + 0.1 * np.arange(story.layers) + 1e-4 * step
        by_layer = [round(float(value), 5) for value in layers]
        pair = {"mean": by_layer, "max": [2 * value for value in by_layer]}
        yield {
            "step": step,
            "scales": dict.fromkeys(SCALES, pair) | {"s_z": {"mean": [4.0], "max": [9.0]}},
            "logit_scale": pair,
            "angle": {name: {"mean": 0.02, "max": 0.05} for name in (*MATRICES, "embed", "head")},
            "gradient": dict.fromkeys((*MATRICES, "embed", "head"), 0.1),
            "stretch": 0.05,
            "unit_error": 2e-7,
            "memory_bytes": 3 * 2**30,
            **(_spectra(by_layer) if spectra and step % spectra == 0 else {}),
        }


def _spectra(by_layer: list[float]) -> dict[str, Any]:
    tables = ("embed", "head")
    quantiles = {"0.0": -0.5, "0.05": -0.1, "0.5": 0.0, "0.95": 0.1, "1.0": 0.6}
    cosine = {"mean": 0.0, "std": 0.06, "quantiles": quantiles}
    return {
        "condition": {name: [10 * value for value in by_layer] for name in MATRICES},
        "cosine": dict.fromkeys(tables, cosine),
        "eigenvalues": {
            name: {str(at): 0.1 + at / 50 for at in range(0, 101, 3)} for name in tables
        },
    }


def _attempts(story: Story, folder: Path) -> Iterator[dict[str, Any]]:
    clock, resumed = BEGAN, 0
    for number, end in enumerate([*story.killed, story.steps], 1):
        last = number == len(story.killed) + 1
        saved = end if last else max(0, end - 100)
        ended = clock + 30 + (end - resumed) * story.step_seconds * 1.05
        yield {
            "number": number,
            "started": clock,
            "ranks": 4,
            "checkpoints": str(folder / "checkpoints"),
            "resumed_at": resumed,
            "first_step": clock + 30,
            "ended": ended,
            "step": end,
            "saved": saved,
            "reason": story.reason if last else "killed",
        }
        clock, resumed = ended + 120, saved


def _ledger(story: Story, config: Config) -> Iterator[dict[str, Any]]:
    settings = plain(flat(config.to_dict()))
    corpus = {"name": "words", "identity": {"tokens": story.corpus}}
    starts = [0, *(max(0, step - 100) for step in story.killed)]
    changed = [{}, *story.settings, *({} for _ in starts)]
    for number, (step, changes) in enumerate(zip(starts, changed, strict=False), 1):
        settings = settings | changes
        tp = settings["parallel.tp"]
        yield {
            "attempt": number,
            "step": step,
            "settings": settings,
            "code": "0.1.0 1234567",
            "topology": {"pp": 1, "dp": 4 // tp, "cp": 1, "tp": tp},
            "corpora": [{"setting": "data.train", "corpora": [corpus]}],
        }
