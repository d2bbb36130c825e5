"""Train a SentencePiece tokenizer: python tools/train_tokenizer.py --input 'FOLDER/**/*.txt' ..."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tqdm import tqdm

from megatron_ngpt.console import tool
from megatron_ngpt.data.sources import FORMATS, Piece, Refusal, find_sources, read_piece
from megatron_ngpt.data.sources.long import LongText
from megatron_ngpt.data.sources.readers import ENDINGS
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer, train_tokenizer

PART = 1 << 20


def main() -> int:
    """Train, and print how well the pieces fit; 1 when the input cannot be used."""
    options = _options()
    refused: Counter[str] = Counter()
    start = time.monotonic()
    try:
        train_tokenizer(
            _texts(options, refused),
            options.output,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            byte_fallback=options.byte_fallback,
            character_coverage=options.character_coverage,
            normalization=options.normalization,
            max_lines=options.max_lines,
            verbose=options.verbose,
        )
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no tokenizer was written", file=sys.stderr)
        return 130
    pieces = SentencePieceTokenizer(options.output).vocab_size
    print(f"{options.output}: {pieces} pieces in {time.monotonic() - start:.1f} s")
    for reason, count in refused.most_common():
        print(f"left out: {count} {reason}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a SentencePiece tokenizer. The same input and flags give the same file.",
        epilog="Exit codes: 0 done, 1 the input cannot be used, 2 wrong usage, 130 interrupted.",
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files (also .gz .bz2 .xz .zst), URLs, folders, globs (** for any depth), - for stdin",
    )
    add("--output", required=True, metavar="FILE.model", help="where the tokenizer goes")
    add("--vocab-size", type=int, required=True, metavar="N", help="pieces, 256 bytes included")
    add(
        "--format",
        choices=FORMATS,
        default="jsonl",
        help="a JSON object a line, plain text, or Parquet, a document a row [%(default)s]",
    )
    add("--json-key", default="text", metavar="KEY", help="key that holds text [%(default)s]")
    add(
        "--on-error",
        choices=("refuse", "skip"),
        default="refuse",
        help="end at a record that cannot be used, or leave it out and count it [%(default)s]",
    )
    add("--model-type", choices=("bpe", "unigram"), default="bpe", help="gigatoken needs bpe [bpe]")
    add(
        "--byte-fallback",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have a piece for every byte, so that no text is unknown; gigatoken needs it [yes]",
    )
    add(
        "--character-coverage",
        type=float,
        default=0.9999,
        metavar="SHARE",
        help="share of the characters that get a piece of their own [%(default)s]",
    )
    add(
        "--normalization",
        choices=("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"),
        default="identity",
        help="how characters are rewritten for good; identity leaves them alone [%(default)s]",
    )
    add(
        "--max-lines",
        type=int,
        default=10_000_000,
        metavar="N",
        help="learn from at most so many lines, drawn at random with a fixed seed [%(default)s]",
    )
    add("--verbose", action="store_true", help="show sentencepiece's own log")
    return parser.parse_args()


def _texts(options: argparse.Namespace, refused: Counter[str]) -> Iterator[str]:
    """Documents of all files, with a bar over the files in a terminal."""
    sources = find_sources(options.input, ENDINGS[options.format])
    for source in tqdm(sources, unit="file", disable=None, leave=False):
        for record in read_piece(Piece(source.path), options.format, [options.json_key]):
            if not isinstance(record, Refusal):
                yield from _parts(record.texts[0])
            elif options.on_error == "skip":
                refused[record.reason] += 1
            else:
                raise record.error()


def _parts(text: bytes | LongText) -> Iterator[str]:
    """A text, or parts of one that is too long for memory."""
    for part in [text] if isinstance(text, bytes) else text.parts(PART):
        yield part.decode(errors="ignore")


if __name__ == "__main__":
    raise SystemExit(tool(main))
