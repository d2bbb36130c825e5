"""Readers of configurations and of what lies in the folder of a run."""

import contextlib
import io
import json
from pathlib import Path

from megatron_ngpt.config import parse_config
from megatron_ngpt.config.words import loaded
from megatron_ngpt.run import claim as claims
from megatron_ngpt.run.attempts import read_attempts
from megatron_ngpt.run.ledger import before, read_ledger
from megatron_ngpt.run.metrics import drop_after
from megatron_ngpt.run.requeue import decide
from tests.fuzz.mutate import bytes_like, lines_like
from tests.fuzz.target import Target
from tests.tools.commands import tool

YAML = b"""model: {width: 64, heads: 4, rope_scaling: none}
data:
  train: [{prefix: a/b, weight: 2.5}, {prefix: "$HOME/x"}]
  seq_len: 4k
  stages: &s [{tokens: 1e6, train: c}]
train: {steps: 1_000, accept_changes: [train.seed]}
optim: {betas: [0.9, 0.95], lr: 1e-3}
"""


def settings(folder: Path) -> Target:
    path = folder / "config.yaml"
    ledger = folder / "ledger.jsonl"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        text = content.decode("utf-8", "replace")
        loaded(text)
        if len(content) % 100 == 0:  # all of it, which takes a thousand times as long
            whole(path)
        before(ledger.parent, folder, 1)

    def whole(path: Path) -> None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                parse_config(["--config", str(path)])
        except SystemExit as ended:
            if ended.code != 2:
                raise

    return Target([YAML, b"model:\n  width: 64\n<<: {a: 1}\n"], bytes_like, read)


def records(folder: Path) -> Target:
    """attempts.jsonl, metrics.jsonl and ledger.jsonl, and those who look at them."""
    lines = [
        {"number": 1, "started": 1.0, "job": "7", "ranks": 2, "checkpoints": str(folder)},
        {"number": 1, "resumed_at": 0, "first_step": 2.0},
        {"step": 1, "loss": 2.0, "tokens": 64, "tokens_per_second": 5.0, "step_seconds": 0.5},
        {"attempt": 1, "step": 0, "settings": {"train.seed": 1}, "topology": {"dp": 2}},
        {"number": 1, "ended": 9.0, "step": 1, "saved": 1, "reason": "signal", "detail": "x"},
        {"number": 2, "started": 11.0},
    ]
    status = tool("job_status")
    status.in_queue = lambda _: ("", "")  # asks SLURM, by a process of its own

    def read(content: bytes) -> None:
        for name in ("attempts", "metrics", "ledger"):
            (folder / f"{name}.jsonl").write_bytes(content)
        if attempts := read_attempts(folder):
            list(status.status(folder, attempts))
        decide(folder, "7", 0, 1, 3)
        read_ledger(folder)
        drop_after(folder / "metrics.jsonl", 1)

    return Target(["\n".join(map(json.dumps, lines)).encode()], lines_like, read)


def owner(folder: Path) -> Target:
    claims.create(folder, 1, claims.Claim(job="1", started="today"))
    path = claims.path_of(folder, 1)
    status = tool("job_status")

    def read(content: bytes) -> None:
        path.write_bytes(content)
        claims.read(folder)
        claims.owns(folder, 1, claims.Claim())
        status._owner(folder)

    return Target([path.read_bytes()], lines_like, read)
