"""One call that measures everything on one GPU; start it with ``bash benchmarks/gpu_suite.sh``.

Tests marked gpu, then each of :data:`CASES` in a process of its own. A new capability adds a line
there. Results are on disk after every case, and a case that would start too late is left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

NEEDED = (
    *("torch", "numpy", "yaml", "tqdm", "safetensors", "sentencepiece", "pytest", "hypothesis"),
    *("pydantic", "hjson", "deepspeed", "docstring_parser", "typeshed_client", "jsonargparse"),
)
"""Imported before anything runs, those that others need first."""

SECONDS = {"all": 460, "tests": 180, "shortest case": 15}
"""Limits of the whole suite and of the tests; a case is not started with less time left."""


@dataclass(frozen=True)
class Case:
    """A benchmark module and its arguments, on the GPU and in the dry run."""

    name: str
    module: str
    gpu: str
    toy: str

    def command(self, dry_run: bool, result: Path) -> list[str]:
        """Command line that leaves its results in ``result``."""
        words = (self.toy + " --device cpu" if dry_run else self.gpu + " --device cuda").split()
        return [sys.executable, "-m", self.module, *words, "--json", str(result)]


_FOUR = "--dtype bf16 --steps 10 --contestants ngpt gpt ngpt-compiled gpt-compiled"
_TWO = "--preset toy --dtype bf16 --steps 2 --contestants ngpt gpt"
_STEP = "benchmarks.step"
CASES = (
    Case("124M, 1k context", _STEP, f"--preset 124m {_FOUR}", _TWO),
    Case("0.5B, 1k context", _STEP, f"--preset 0.5b {_FOUR}", f"{_TWO} --layers 3"),
    Case(
        "124M, 4k context",
        _STEP,
        f"--preset 124m --seq-len 4096 --micro-batch 8 {_FOUR}",
        f"{_TWO} --seq-len 128 --micro-batch 1",
    ),
    Case(
        "0.5B, 4k context",
        _STEP,
        f"--preset 0.5b --seq-len 4096 --micro-batch 4 {_FOUR}",
        f"{_TWO} --layers 3 --seq-len 128 --micro-batch 1",
    ),
    Case(
        "projection at 0.5B",
        "benchmarks.projection",
        "--preset 0.5b --dtype bf16 --ranks 1 --stages 1 3 --steps 10",
        "--preset toy --dtype bf16 --ranks 1 --stages 1 --steps 2",
    ),
    Case(
        "longest sequence at 1B",
        "benchmarks.longest",
        "--ways plain,all,all_but_attention --start 16k --limit 64k",
        "--ways plain,all --model toy --start 128 --limit 128",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the tests passed and every case ran; 2 when something needed is missing."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu_suite.sh", description=__doc__)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="toy size on CPU")
    options = parser.parse_args(argv)
    missing = what_is_missing(options.dry_run)
    if missing:
        print("\n".join(missing), file=sys.stderr)
        return 2
    found: dict[str, Any] = {
        "dry_run": options.dry_run,
        "tests": run_tests(options.dry_run),
        "cases": {},
    }
    for case in CASES:
        left = SECONDS["all"] - (time.monotonic() - started)
        print(f"{case.name}: at most {left:.0f} s are left", flush=True)
        found["cases"][case.name] = run_case(case, options.dry_run, left)
        found["seconds"] = time.monotonic() - started
        _write(options.outdir, found)
    print((options.outdir / "gpu_suite.md").read_text())
    failed = [name for name, case in found["cases"].items() if "error" in case]
    return 1 if failed or found["tests"]["exit_code"] else 0


def what_is_missing(dry_run: bool) -> list[str]:
    """One line per package that cannot be imported, and one when there is no GPU."""
    lines = []
    for module in NEEDED:
        try:
            importlib.import_module(module)
        except ImportError as err:
            lines.append(f"missing: {module} ({err}); put its wheel on PYTHONPATH or install it")
    if not lines and not dry_run and not importlib.import_module("torch").cuda.is_available():
        lines.append("missing: torch sees no GPU here; --dry-run runs at toy size on CPU")
    return lines


def run_tests(dry_run: bool) -> dict[str, Any]:
    """Counts of the tests marked gpu, which the dry run only collects, and what they printed."""
    # tests of absent optional packages may fail to import; the others should run all the same
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command.append("--continue-on-collection-errors")
    if dry_run:
        code, output = _run([*command, "--collect-only"], SECONDS["tests"])
        return {"exit_code": code, "collected": output.count("::"), "output": output[-4000:]}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        code, output = _run([*command, "--junitxml", str(report)], SECONDS["tests"])
        counts = {}
        if report.exists():
            suite = ElementTree.parse(report).getroot()[0]
            counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    return {"exit_code": code, **counts, "output": output[-4000:]}


def run_case(case: Case, dry_run: bool, seconds: float) -> dict[str, Any]:
    """Results of one case, or why there are none; out of memory, once more at half the batch."""
    if seconds < SECONDS["shortest case"]:
        return {"error": f"not started: only {seconds:.0f} s of the suite's time were left"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = case.command(dry_run, result)
        started = time.monotonic()
        code, output = _run(command, seconds)
        if "OutOfMemoryError" in output and "--micro-batch" in command:
            at = command.index("--micro-batch") + 1
            command[at] = str(max(1, int(command[at]) // 2))
            code, output = _run(command, seconds - (time.monotonic() - started))
        taken = time.monotonic() - started
        if code or not result.exists():
            return {"error": f"exit code {code}", "seconds": taken, "output": output[-4000:]}
        return {**json.loads(result.read_text()), "seconds": taken, "printed": _table_in(output)}


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit code (124 when it took too long) and what was printed."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(seconds, 1),
        )
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        return 124, output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def _table_in(output: str) -> str:
    return "\n".join(line for line in output.splitlines() if line.startswith("|"))


def _write(outdir: Path, found: dict[str, Any]) -> None:
    (outdir / "gpu_suite.json").write_text(json.dumps(found, indent=1) + "\n")
    (outdir / "gpu_suite.md").write_text(describe(found))


def describe(found: dict[str, Any]) -> str:
    """One line per contestant of every case; then what other benchmarks printed."""
    header = "| case | contestant | tokens/s | ms a step | speed / first | MFU | peak GiB |"
    lines = [header, "| --- " * 7 + "|"]
    rest: list[str] = []
    facts: dict[str, Any] = {}
    for name, case in found["cases"].items():
        facts = case.get("facts", facts)
        if "error" in case:
            lines.append(f"| {name} | {case['error']} | | | | | |")
        elif case["benchmark"] == "step":
            lines += [_row(name, *item) for item in case["results"].items()]
        else:
            rest.append(f"## {name}\n\n{case['printed']}\n")
    tests = {key: value for key, value in found["tests"].items() if key != "output"}
    about = [f"tests marked gpu: {tests}", f"{facts}", f"{found['seconds']:.0f} s in all"]
    return "\n".join([*lines, "", *about, "", *rest])


def _row(case: str, name: str, result: dict[str, Any]) -> str:
    seconds, speed, mfu = result["seconds"], result["speed_ratio"], result["mfu"]
    cells = (
        case,
        name,
        f"{result['tokens_per_second']:,.0f}",
        f"{seconds['median'] * 1e3:.1f} ({seconds['q25'] * 1e3:.1f} to {seconds['q75'] * 1e3:.1f})",
        f"{speed['median']:.3f}",
        "unknown" if mfu is None else f"{mfu:.1%}",
        f"{result['peak_bytes'] / 2**30:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
