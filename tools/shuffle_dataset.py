"""The documents of a pair in random order: python tools/shuffle_dataset.py --input A ..."""

from __future__ import annotations

import argparse

from megatron_ngpt.console import tool
from megatron_ngpt.data.pairs.command import run
from megatron_ngpt.data.pairs.shuffle import shuffle


def main() -> int:
    """Shuffle and print the counts."""
    parser = argparse.ArgumentParser(
        description="Write the documents of a .bin/.idx pair in random order. The same seed gives "
        "the same order with any --memory-mb."
    )
    parser.add_argument("--input", required=True, metavar="PREFIX")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="[%(default)s]")
    parser.add_argument(
        "--memory-mb", type=int, default=1000, metavar="N", help="to work in [%(default)s]"
    )
    options = parser.parse_args()
    arguments = (options.input, options.output_prefix, options.seed, options.memory_mb)
    return run(lambda: [shuffle(*arguments)])


if __name__ == "__main__":
    raise SystemExit(tool(main))
