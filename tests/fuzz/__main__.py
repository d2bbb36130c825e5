"""Hundred thousand inputs that are nearly right: python -m tests.fuzz [--inputs N] [TARGET ...]

Prints how many ended how, and which lines of the readers they reached. Exit code 1 at the first
error that is not our own, at one that takes longer than 5 s or more than 2 GiB of memory.
"""

import argparse
import resource
import tempfile
import traceback
from pathlib import Path

from tests.fuzz.run import Coverage, fuzz
from tests.fuzz.targets import targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TARGET")
    parser.add_argument("--inputs", type=int, default=120_000, help="in all [120000]")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    coverage, failed = Coverage(), []
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        names = options.names or list(found)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), resource.RLIM_INFINITY))
        for name in names:
            try:
                counts = fuzz(found[name], options.inputs // len(names), options.seed, coverage)
            except BaseException:
                traceback.print_exc()
                failed.append(name)
                continue
            told = ", ".join(f"{count} {how}" for how, count in counts.most_common())
            print(f"{name:15} {told}", flush=True)
    print("\nlines of functions that were reached")
    for module, reached, whole in coverage.report():
        print(f"{reached:5} of {whole:4}  {module}")
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
