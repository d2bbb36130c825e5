"""Several pairs to one: python tools/merge_datasets.py --input A B ... --output-prefix C"""

from __future__ import annotations

import argparse

from megatron_ngpt.console import tool
from megatron_ngpt.data.pairs.command import run
from megatron_ngpt.data.pairs.merge import merge


def main() -> int:
    """Merge and print the counts."""
    parser = argparse.ArgumentParser(description="Join .bin/.idx pairs, in the order given.")
    parser.add_argument("--input", nargs="+", required=True, metavar="PREFIX")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX")
    options = parser.parse_args()
    return run(lambda: [merge(options.input, options.output_prefix)])


if __name__ == "__main__":
    raise SystemExit(tool(main))
