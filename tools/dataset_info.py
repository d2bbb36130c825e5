"""What is in a pair: python tools/dataset_info.py PREFIX [--verify] [--samples 3 ...]"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from megatron_ngpt.console import tool
from megatron_ngpt.data.bulk import load_tokenizer
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.largest import largest_id
from megatron_ngpt.data.pairs.info import lengths_of
from megatron_ngpt.data.pairs.manifest import manifest_of, verify
from megatron_ngpt.data.provenance import Provenance, check_tokenizer

SHOWN_TOKENS = 100


def main() -> int:
    """Print; 1 when the pair is damaged or something is missing."""
    try:
        _show(_options())
    except (ValueError, OSError, ModuleNotFoundError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show what is in a .bin/.idx pair.")
    parser.add_argument("prefix", metavar="PREFIX", help="path without .bin or .idx")
    parser.add_argument("--verify", action="store_true", help="read all, compare the checksums")
    parser.add_argument("--png", metavar="FILE", help="draw the histogram of lengths")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="documents to decode")
    parser.add_argument("--tokenizer-model", metavar="FILE", help="to decode them with")
    return parser.parse_args()


def _show(options: argparse.Namespace) -> None:
    dataset = IndexedDataset(options.prefix)
    lengths = lengths_of(dataset)
    mean = dataset.token_count / max(1, dataset.document_count)
    print(f"{dataset.document_count:,} documents, {dataset.sequence_count:,} sequences")
    print(f"{dataset.token_count:,} {dataset.dtype} tokens")
    print(f"{lengths.shortest:,} to {lengths.longest:,} tokens a document, {mean:,.1f} on average")
    print(lengths.table())
    if options.png:
        lengths.draw(options.png, dataset.prefix)
    manifest = manifest_of(dataset)
    if manifest is None or manifest.get("largest_id") is None:
        print(f"largest id {largest_id(dataset)}")  # kept beside the pair for training to find
    if manifest:
        told = ("made_by", "tokenizer", "eod", "options", "refused", "removed", "special_texts")
        for name in (*told, "largest_id"):
            if manifest.get(name) is not None and manifest[name] != {}:
                print(f"{name}: {json.dumps(manifest[name])}")
    if options.samples:
        _show_samples(dataset, options)
    if options.verify:
        print(verify(options.prefix))


def _show_samples(dataset: IndexedDataset, options: argparse.Namespace) -> None:
    if not options.tokenizer_model:
        raise ValueError("--samples needs --tokenizer-model to decode them with")
    tokenizer = load_tokenizer(options.tokenizer_model)
    made = Provenance.of(dataset) or Provenance()
    check_tokenizer(made.tokenizer, options.tokenizer_model, "--tokenizer-model")
    count = min(options.samples, dataset.document_count)
    for number in np.linspace(0, dataset.document_count - 1, count).astype(int).tolist():
        ids = dataset.document(number)
        more = " ..." if len(ids) > SHOWN_TOKENS else ""
        text = tokenizer.decode(ids[:SHOWN_TOKENS])
        print(f"document {number}, {len(ids)} tokens: {text!r}{more}")


if __name__ == "__main__":
    raise SystemExit(tool(main))
