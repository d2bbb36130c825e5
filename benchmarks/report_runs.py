"""What a report costs: seconds and most memory for runs of many steps.

    python -m benchmarks.report_runs [--runs 3] [--steps 20000] [--layers 16] [--no-pictures]

The folders are made up (benchmarks/synthetic.py): a record of metrics for each step, of vitals
every 10 and of spectra every 500, two kills and a spike each. The report is written by
its command, in a process of its own; its time and memory are what the system counted for it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.synthetic import Story, write_run

_TOOL = Path(__file__).resolve().parents[1] / "tools" / "report.py"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--no-pictures", action="store_true", help="the HTML file alone")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        runs = [
            write_run(
                Path(place) / f"run{n}",
                Story(
                    steps=options.steps, layers=options.layers, seed=n, faster=1 + n / 2,
                    killed=(options.steps // 3, options.steps // 2), spike=(options.steps // 4, 2),
                ),
            )
            for n in range(options.runs)
        ]  # fmt: skip
        read = sum(file.stat().st_size for run in runs for file in run.glob("*.jsonl"))
        words = [sys.executable, str(_TOOL), *map(str, runs)]
        words += ["--no-pictures"] if options.no_pictures else []
        began = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - began
        made = (runs[0] / "report" / "report.html").stat().st_size
        pictures = sum(file.stat().st_size for file in (runs[0] / "report").glob("*.png"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("| runs | steps | read, MB | wall, s | CPU, s | most memory, MB | HTML, MB | PNG, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {options.runs} | {options.steps:,} | {read / 1e6:.0f} | {took:.1f} | "
        f"{used.ru_utime + used.ru_stime:.1f} | {used.ru_maxrss * 1024 / 1e6:.0f} | "
        f"{made / 1e6:.1f} | {pictures / 1e6:.1f} |"
    )


if __name__ == "__main__":
    main()
