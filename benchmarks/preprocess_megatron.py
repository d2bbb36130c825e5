"""Ours against Megatron-LM's preprocess_data_fast.py: seconds, MB/s, memory, and the bytes written.

    python -m benchmarks.preprocess_megatron --megatron ~/Megatron-LM \\
        --input FILE.jsonl --tokenizer FOLDER/tokenizer.json

Both run as commands, in turns, from the same environment, with all cores; both encode by gigatoken.
Their tool reads Hugging Face tokenizers only, so that the tokenizer is a ``tokenizer.json``. A
command's start (Python and imports) is measured on a file of one line and taken off to give
"MB/s after the start". Memory is the largest resident size of the command. Their checkout is of
August 2026 or later, needs Python 3.12 and triton, and what else it imports.

Theirs checks nothing, loads its whole input and leaves out what follows a record without text.
Ours checks every record, compares a sample with ``tokenizers``, and syncs what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measure import ratio
from benchmarks.report import facts, table, write_json

OURS, THEIRS = "ours", "preprocess_data_fast.py"
_ROOT = Path(__file__).resolve().parents[1]


class Spent(NamedTuple):
    """Seconds by the clock and of processors, and MB of memory."""

    wall: float
    cpu: float
    memory: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = measure(options, _one_line(folder), folder, 1)
        spent = measure(options, options.input, folder, options.rounds)
        same = _pair(folder, OURS) == _pair(folder, THEIRS)
    size = options.input.stat().st_size / 1e6
    begun = {who: statistics.median(each.wall for each in start[who]) for who in start}
    results = summary(spent, begun, size)
    print(_table(spent, begun, size))
    for name, value in results.items():
        print(f"{name}: {value:.2f}")
    print("the same bytes" if same else "other bytes")
    found = {**facts(torch.device("cpu")), "text_MB": size, **results, "same_bytes": same}
    write_json(options.json, found)
    print(json.dumps(found))
    return 0


def measure(
    options: argparse.Namespace, text: Path, folder: Path, rounds: int
) -> dict[str, list[Spent]]:
    """What each command takes, by round; the pairs of the last round stay in the folder."""
    tokenizer = options.tokenizer
    commands = {
        OURS: [
            *(str(_ROOT / "tools/preprocess_data.py"), "--input", str(text), "--append-eod"),
            *("--output-prefix", f"{folder}/made/{OURS}", "--tokenizer", str(tokenizer)),
        ],
        THEIRS: [
            *(str(options.megatron / "tools/preprocess_data_fast.py"), "--input", str(text)),
            *(
                "--output-prefix",
                f"{folder}/made/{THEIRS}",
                "--tokenizer-type",
                "HuggingFaceTokenizer",
            ),
            *("--tokenizer-model", str(tokenizer.parent), "--use-gigatoken", "--append-eod"),
        ],
    }
    # its own megatron.core, not an installed one
    paths = {OURS: _ROOT, THEIRS: options.megatron}
    spent: dict[str, list[Spent]] = {who: [] for who in commands}
    for _ in range(rounds):
        shutil.rmtree(folder / "made", ignore_errors=True)
        (folder / "made").mkdir()
        for who, command in commands.items():
            spent[who].append(_run([sys.executable, *map(str, command)], paths[who]))
    return spent


def summary(
    spent: dict[str, list[Spent]], begun: dict[str, float], size: float
) -> dict[str, float]:
    """Speeds of ours divided by theirs, round by round, and memory's share."""
    after = {who: [each.wall - begun[who] for each in rounds] for who, rounds in spent.items()}
    pairs = {
        "whole command": {who: [each.wall for each in spent[who]] for who in spent},
        "after the start": after,
        "CPU time": {who: [each.cpu for each in spent[who]] for who in spent},
    }
    results = {
        f"speed of ours / theirs, {what}": ratio(times[THEIRS], times[OURS])["median"]
        for what, times in pairs.items()
    }
    memory = {who: max(each.memory for each in rounds) for who, rounds in spent.items()}
    return results | {"memory of ours / theirs": memory[OURS] / memory[THEIRS]}


_LAUNCH = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6], file)
sys.exit(code)
"""
"""A process starts with the largest size of the one that made it (Linux's ru_maxrss outlives exec),
which is not to be this one with torch in it."""


def _run(command: Sequence[str], path: Path) -> Spent:
    environment = os.environ | {"PYTHONPATH": str(path)}
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said, tempfile.NamedTemporaryFile("r") as used:
        launch = [sys.executable, "-S", "-c", _LAUNCH, used.name, *command]
        if subprocess.call(launch, stdout=said, stderr=said, env=environment):
            said.seek(0)
            raise RuntimeError(f"{command[1]} failed:\n{said.read().decode()[-2000:]}")
        cpu, memory = json.load(used)
    return Spent(time.perf_counter() - begun, cpu, memory)


def _pair(folder: Path, who: str) -> list[bytes]:
    files = (folder / f"made/{who}_text_document.{kind}" for kind in ("bin", "idx"))
    return [file.read_bytes() for file in files]


def _one_line(folder: Path) -> Path:
    path = folder / "one.jsonl"
    path.write_text('{"text": "one line"}\n')
    return path


def _table(spent: dict[str, list[Spent]], begun: dict[str, float], size: float) -> str:
    rows = []
    for who, rounds in spent.items():
        wall, cpu, memory = (statistics.median(each) for each in zip(*rounds, strict=True))
        speeds = size / wall, size / (wall - begun[who]), size / cpu, memory
        numbers = [f"{n:.1f}" for n in (wall, begun[who], cpu, *speeds)]
        rows.append([who, *numbers])
    columns = ("seconds", "of them start", "CPU seconds", "MB/s", "MB/s after the start")
    return table(["", *columns, "MB per CPU second", "memory, MB"], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megatron", type=Path, required=True, metavar="FOLDER", help="checkout")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="JSON Lines")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FILE", help="a tokenizer.json"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of both commands [3]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
