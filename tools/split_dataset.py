"""One pair to several by the content of each document: stable when the corpus grows.

python tools/split_dataset.py --input A --output-prefix A --split train=0.99 valid=0.01
"""

from __future__ import annotations

import argparse

from megatron_ngpt.console import tool
from megatron_ngpt.data.pairs.command import run
from megatron_ngpt.data.pairs.split import split


def main() -> int:
    """Split and print the counts."""
    parser = argparse.ArgumentParser(
        description="Deal the documents of a .bin/.idx pair to PREFIX_<name>, by a hash of each."
    )
    parser.add_argument("--input", required=True, metavar="PREFIX")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX")
    parser.add_argument(
        "--split",
        nargs="+",
        type=_share,
        required=True,
        metavar="NAME=SHARE",
        help="shares that add up to 1, for example train=0.98 valid=0.01 test=0.01",
    )
    options = parser.parse_args()
    shares = dict(options.split)
    return run(lambda: split(options.input, options.output_prefix, shares).values())


def _share(word: str) -> tuple[str, float]:
    name, _, share = word.partition("=")
    return name, float(share)


if __name__ == "__main__":
    raise SystemExit(tool(main))
