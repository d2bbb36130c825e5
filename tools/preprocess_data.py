"""Encode text files into the .bin/.idx pairs that training reads; flags as in Megatron-LM."""

from __future__ import annotations

import argparse
import signal
import sys

from megatron_ngpt.data.preprocess import PreprocessJob, Summary, preprocess
from megatron_ngpt.data.records import READERS

# Megatron's names for one and the same thing.
TOKENIZER_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


def main() -> int:
    """Run the job and print what came of it; 1 when it was refused."""
    options = vars(_options())
    del options["tokenizer_type"]
    job = PreprocessJob(
        inputs=options.pop("input"), tokenizer=options.pop("tokenizer_model"), **options
    )
    # By default SIGTERM would leave the temporary files behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _show(preprocess(job, report=lambda line: print(line, file=sys.stderr)))
    except (ValueError, OSError, ModuleNotFoundError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Encode text files into PREFIX_<key>_document.bin and .idx for training.",
        epilog="Exit codes: 0 done; 1 refused, with a message, and no pair is written; 2 wrong "
        "usage; 130 or 143 interrupted or terminated.",
    )
    add = parser.add_argument
    add(
        "--input", nargs="+", required=True, metavar="FILE", help="files or globs, ** for any depth"
    )
    add(
        "--output-prefix", required=True, metavar="PREFIX", help="output path up to _<key>_document"
    )
    add("--tokenizer-model", required=True, metavar="FILE", help="SentencePiece .model file")
    add(
        "--tokenizer-type",
        choices=TOKENIZER_TYPES,
        default=TOKENIZER_TYPES[0],
        help="for Megatron's scripts: the three names mean the same",
    )
    add("--append-eod", action="store_true", help="end every document with the tokenizer's </s>")
    add(
        "--format",
        choices=tuple(READERS),
        default="jsonl",
        help="a JSON object a line, or plain text files of one document each [%(default)s]",
    )
    add(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys of the JSON objects that hold text; each gives a pair of its own [text]",
    )
    add(
        "--on-error",
        choices=("refuse", "skip"),
        default="refuse",
        help="end at a record that cannot be used, or leave it out and count it [%(default)s]",
    )
    add(
        "--encoder",
        choices=("auto", "gigatoken", "sentencepiece"),
        default="auto",
        help="auto: gigatoken where it gives sentencepiece's ids, else sentencepiece [%(default)s]",
    )
    add("--workers", type=int, default=0, metavar="N", help="encoding threads [one per core]")
    add(
        "--log-interval",
        type=int,
        default=1000,
        metavar="N",
        help="documents between progress lines where stderr is no terminal [%(default)s]",
    )
    return parser.parse_args()


def _show(summary: Summary) -> None:
    for prefix in summary.prefixes:
        print(f"{prefix}.bin, {prefix}.idx")
    print(f"{summary.documents} documents, {summary.tokens} tokens, {summary.size} bytes read")
    for reason, count in summary.refused.most_common():
        print(f"left out: {count} {reason}")
    for refusal in summary.first_refusals:
        print(f"  {refusal}")
    if summary.refused.total() > len(summary.first_refusals):
        print("  ...")


if __name__ == "__main__":
    sys.exit(main())
