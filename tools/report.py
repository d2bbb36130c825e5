"""A run, or several, as one page to look at: report.html and PNG files.

    python tools/report.py RUN [RUN ...] [--output FOLDER] [--prompt TEXT ...] [--watch]

On top a verdict in plain words; below it loss, speed, memory, nGPT's scales by layer, condition
numbers, checkpoints, what the time went into. The file needs no network. Of several runs the first
is the one that the others are compared with. --watch writes it anew while a run goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_ngpt.console import say, tool


def main(argv: Sequence[str] | None = None) -> int:
    """Write it, once or again and again; 2 when something asked for is not there."""
    options = _parser().parse_args(argv)
    output = options.output or options.runs[0] / "report"
    again = options.every if options.watch else 0.0
    from megatron_ngpt.report.write import write

    while True:
        try:
            found = write(
                options.runs,
                output,
                prompts=options.prompt,
                peak=options.peak * 1e12,
                again=again,
                pictures=not options.no_pictures,
            )
            for run, findings in found:
                for finding in findings:
                    say(f"{run.name}: {finding.text}")
            say(f"written: {output / 'report.html'}")
            if not options.watch:
                return 0
            time.sleep(options.every)
        except (FileNotFoundError, ModuleNotFoundError) as err:
            print(f"report.py: {err}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:  # how one ends --watch
            return 0 if options.watch else 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="logging.dir of each run")
    parser.add_argument("--output", type=Path, help="folder for the files; RUN/report if not given")
    parser.add_argument(
        "--prompt", nargs="+", default=[], help="texts that the newest checkpoint goes on with"
    )
    parser.add_argument(
        "--peak", type=float, default=0.0, help="TFLOP/s that one rank could do at best, for MFU"
    )
    parser.add_argument("--watch", action="store_true", help="write it again every --every seconds")
    parser.add_argument("--every", type=float, default=30.0, help="seconds, with --watch")
    parser.add_argument("--no-pictures", action="store_true", help="no PNG files")
    return parser


if __name__ == "__main__":
    raise SystemExit(tool(main))
