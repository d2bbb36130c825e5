"""Leave out documents that came before: python tools/deduplicate_dataset.py --input A B ..."""

from __future__ import annotations

import argparse

from megatron_ngpt.console import tool
from megatron_ngpt.data.pairs.command import run
from megatron_ngpt.data.pairs.deduplicate import deduplicate


def main() -> int:
    """Copy what is new and print the counts."""
    parser = argparse.ArgumentParser(
        description="Join .bin/.idx pairs and leave out documents whose tokens came before."
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="PREFIX")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX")
    options = parser.parse_args()
    return run(lambda: [deduplicate(options.input, options.output_prefix)])


if __name__ == "__main__":
    raise SystemExit(tool(main))
