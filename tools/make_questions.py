"""Multiple-choice questions out of held-out text, for lm-eval-harness (docs/huggingface.md).

python tools/make_questions.py --input valid.jsonl --output continuations.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_ngpt.console import tool
from megatron_ngpt.data.continuations import questions
from megatron_ngpt.data.sources import FORMATS, Piece, Refusal, find_sources, read_piece
from megatron_ngpt.data.sources.readers import ENDINGS


def main(argv: Sequence[str] | None = None) -> int:
    """Write one question a line; 1 when the text is of no use."""
    options = _options(argv)
    try:
        texts = list(_texts(options))
        shape = (options.count, options.context_words, options.choice_words, options.choices)
        found = questions(texts, *shape, seed=options.seed)
        lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in found]
        options.output.write_text("".join(lines), encoding="utf-8")
    except (ValueError, OSError) as err:
        print(f"make_questions.py: {err}", file=sys.stderr)
        return 1
    print(f"{options.output}: {len(found)} questions out of {len(texts)} documents")
    return 0


def _texts(options: argparse.Namespace) -> Iterator[str]:
    for source in find_sources(options.input, ENDINGS[options.format]):
        for record in read_piece(Piece(source.path), options.format, [options.json_key]):
            if isinstance(record, Refusal):
                raise record.error()
            text = record.texts[0]
            whole = text if isinstance(text, bytes) else b"".join(text.parts(1 << 20))
            yield whole.decode()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Which of several passages goes on from here? One is true, the others are "
        "from other places of the text."
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="as of preprocess_data.py")
    add("--output", type=Path, required=True, metavar="FILE.jsonl")
    add("--format", choices=FORMATS, default="jsonl", help="%(default)s")
    add("--json-key", default="text", metavar="KEY", help="key that holds text [%(default)s]")
    add("--count", type=int, default=1000, metavar="N", help="questions [%(default)s]")
    add("--context-words", type=int, default=80, metavar="N", help="before them [%(default)s]")
    add("--choice-words", type=int, default=20, metavar="N", help="of each choice [%(default)s]")
    add("--choices", type=int, default=4, metavar="N", help="one of them true [%(default)s]")
    add("--seed", type=int, default=0, help="another one gives other questions [%(default)s]")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(tool(main))
