"""Fault injection: a tiny run is killed again and again, and has to end as if it never had been.

    python tools/soak.py --kills 200 [--faults kill stop clock slow damage full] [--seed N]

Two ranks train on a corpus that is made for it. One of them is killed (SIGKILL) at a random
instant: while it starts, resumes, steps, evaluates, saves, or before a change of the file system
that was drawn; ranks are stopped for a moment, the clock jumps by days, the disk is slow or full,
files of the newest checkpoint are damaged. After each start nothing that was saved may be lost; at
the end every record and every value must be equal, bit by bit, to those of a run that was left
alone. Exit code 0 when all is so, 1 when not. Needs two cores, and about two seconds a kill.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_ngpt.console import tool


def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="ranks to kill in all [200]")
    parser.add_argument("--faults", nargs="+", metavar="KIND", help="some of them only [all]")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the run [2]")
    parser.add_argument("--steps", type=int, default=40, help="of each run [40]")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn [1]")
    parser.add_argument("--folder", type=Path, help="where to work, kept [a temporary one]")
    parser.add_argument("--quiet", action="store_true", help="figures only")
    options = parser.parse_args(argv)
    # with torch, which --help does not wait for
    from megatron_ngpt.soak.soak import KINDS, Soak, SoakFailed

    kinds = tuple(options.faults or KINDS)
    if unknown := set(kinds) - set(KINDS):
        print(f"soak.py: --faults {' '.join(unknown)}: choose of {' '.join(KINDS)}")
        return 2
    if "kill" not in kinds:
        kinds = ("kill", *kinds)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="soak_") as name:
        soak = Soak(
            options.folder or Path(name),
            options.kills,
            kinds,
            ranks=options.ranks,
            steps=options.steps,
            seed=options.seed,
            tell=(lambda _: None) if options.quiet else lambda line: print(line, flush=True),
        )
        try:
            soak.go()
        except SoakFailed as err:
            print(f"FAILED after {soak.counts['kills']} kills: {err}", file=sys.stderr)
            return 1
    print("\n".join(soak.report()))
    print(f"nothing was lost; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(tool(main))
