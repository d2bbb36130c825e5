"""Texts that checkpoints of a run write, made once each and kept beside the report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_ngpt.console import say
from megatron_ngpt.report.reading import RunData, records, saved_in
from megatron_ngpt.run.checkpoints import checkpoints, step_of

FILE = "samples.jsonl"
_RULE = "-" * 72


@dataclass(frozen=True)
class Sample:
    """A prompt and how a checkpoint goes on."""

    run: str
    step: int
    prompt: str
    text: str


def read_samples(folder: Path) -> list[Sample]:
    """Those that were made for a report before."""
    fields = Sample.__annotations__
    return [
        Sample(**{name: record[name] for name in fields})
        for record in records(folder / FILE)
        if fields.keys() <= record.keys()
    ]


def add_samples(folder: Path, runs: Sequence[RunData], prompts: Sequence[str]) -> None:
    """Let each run's newest checkpoint go on with each prompt, by ``tools/generate.py``.

    In a process of its own: it needs torch, which a report does not. What fails is told.
    """
    known = {(sample.run, sample.step, sample.prompt) for sample in read_samples(folder)}
    for run in runs:
        found = checkpoints(saved_in(run.path, run.attempts))
        step = step_of(found[0]) if found else -1
        new = [p for p in prompts if (run.name, step, p) not in known]
        if not found or not new:
            continue
        texts = _generate(found[0], new)
        with (folder / FILE).open("a", encoding="utf-8") as stream:
            for prompt, text in zip(new, texts, strict=False):
                sample = asdict(Sample(run.name, step, prompt, text))
                stream.write(json.dumps(sample) + "\n")


def _generate(checkpoint: Path, prompts: Sequence[str]) -> list[str]:
    tool = Path(__file__).resolve().parents[2] / "tools" / "generate.py"
    words = [sys.executable, str(tool), "--checkpoint", str(checkpoint), "--prompt", *prompts]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"no generated text: {done.stderr.strip()[-300:]}", sys.stderr)
        return []
    return [text.strip("\n") for text in done.stdout.split(_RULE + "\n")[: len(prompts)]]
