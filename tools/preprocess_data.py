"""Encode text files into the .bin/.idx pairs that training reads; flags as in Megatron-LM.

python tools/preprocess_data.py --input 'corpus/*.jsonl' --tokenizer-model M --output-prefix P
mpirun -n 64 python tools/preprocess_data.py --mpi --input ...
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from typing import Any

from megatron_ngpt.console import tool
from megatron_ngpt.data.preprocess import PreprocessJob, Summary, preprocess
from megatron_ngpt.data.preprocess.job import SHARD_MB
from megatron_ngpt.data.preprocess.requeue import REFUSED, decide
from megatron_ngpt.data.preprocess.special import CHOICES
from megatron_ngpt.data.sources import FORMATS
from megatron_ngpt.mesh.mpi import Team

# Megatron's names for one and the same thing.
TOKENIZER_TYPES = (
    *("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"),
    "HuggingFaceTokenizer",
)


_ESCAPE = re.compile(r"\\(?:[\\'abfnrtv0]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")


def _unescaped(word: str) -> str:
    """Escapes replaced, and every other character left as it is."""
    return _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), word)


# Titles, then names and settings of each option in the order that --help shows them.
OPTIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "what is read": [
        (
            "--input",
            dict(
                nargs="+",
                required=True,
                metavar="FILE",
                help="files (also .gz .bz2 .xz .zst), URLs, folders, globs (** for any depth), "
                "- for stdin",
            ),
        ),
        (
            "--format",
            dict(
                choices=FORMATS,
                default="jsonl",
                help="a JSON object a line, plain text, or Parquet, a document a row [%(default)s]",
            ),
        ),
        (
            "--json-keys --json_keys",
            dict(
                nargs="+",
                default=["text"],
                metavar="KEY",
                help="keys or columns that hold text; each gives a pair of its own [text]",
            ),
        ),
        (
            "--separator",
            dict(
                type=_unescaped,
                default="",
                metavar="TEXT",
                help="what stands between documents of plain text, \\n allowed "
                "[a file is a document]",
            ),
        ),
        (
            "--on-error",
            dict(
                choices=("refuse", "skip"),
                default="refuse",
                help="end at a record that cannot be used, or leave it out and count it "
                "[%(default)s]",
            ),
        ),
    ],
    "what is written": [
        (
            "--output-prefix --output_prefix",
            dict(required=True, metavar="PREFIX", help="output path up to _<key>_document"),
        ),
        (
            "--tokenizer-model --tokenizer",
            dict(
                required=True,
                metavar="FILE",
                help="SentencePiece .model file, or a Hugging Face tokenizer.json",
            ),
        ),
        (
            "--tokenizer-type",
            dict(
                choices=TOKENIZER_TYPES,
                default=TOKENIZER_TYPES[0],
                help="for Megatron's scripts: the file decides",
            ),
        ),
        (
            "--append-eod",
            dict(action="store_true", help="end every document with the tokenizer's </s>"),
        ),
        (
            "--special-text",
            dict(
                choices=CHOICES,
                default="keep",
                help="a text that spells out a special token, such as <|endoftext|>: keep its id, "
                "as the tokenizer does; plain letters; or refuse the document [%(default)s]",
            ),
        ),
    ],
    "how": [
        (
            "--encoder",
            dict(
                choices=("auto", "gigatoken", "sentencepiece", "tokenizers"),
                default="auto",
                help="auto: gigatoken where it gives sentencepiece's ids, else the tokenizer's own "
                "[auto]",
            ),
        ),
        (
            "--workers",
            dict(
                type=int,
                default=0,
                metavar="N",
                help="encoding threads of each process [all processes together one per core]",
            ),
        ),
        (
            "--processes",
            dict(
                type=int,
                default=1,
                metavar="N",
                help="processes on this machine, for more cores than one reader feeds, about 8 [1]",
            ),
        ),
        (
            "--mpi",
            dict(action="store_true", help="mpirun or srun started the processes of this job"),
        ),
        (
            "--shard-mb",
            dict(
                type=float,
                default=SHARD_MB,
                metavar="N",
                help="MB of input that a process does at a time and an interruption can cost "
                "[%(default)s]",
            ),
        ),
        (
            "--log-interval",
            dict(
                type=int,
                default=1000,
                metavar="N",
                help="documents between progress lines where stderr is no terminal [%(default)s]",
            ),
        ),
    ],
    "for batch scripts (docs/slurm.md)": [
        (
            "--decide",
            dict(
                type=int,
                metavar="CODE",
                help="make nothing: the launcher of this job ended with CODE; exit with 0 to start "
                "it again, 10 when its pairs are there and whole, 11 to give up",
            ),
        ),
        (
            "--job",
            dict(default="", metavar="ID", help="the scheduler's job, the same over its restarts"),
        ),
        (
            "--tries",
            dict(
                type=int,
                default=3,
                metavar="N",
                help="attempts in a row that finish no shard after which to give up [%(default)s]",
            ),
        ),
    ],
}


def main() -> int:
    """Run the job and print what came of it; 2 when it was refused, 1 when it failed."""
    options = vars(_options())
    del options["tokenizer_type"]
    mpi, batch = (options.pop(name) for name in ("mpi", "job"))
    ended, tries = (options.pop(name) for name in ("decide", "tries"))
    job = PreprocessJob(
        inputs=options.pop("input"), tokenizer=options.pop("tokenizer_model"), **options
    )
    if ended is not None:
        return decide(job, batch, ended, tries).tell()
    # By default SIGTERM would leave the temporary files behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    team = None
    try:
        team = Team() if mpi else None
        summary = preprocess(job, _tell, team)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as err:
        return _first_tells(team, f"error: {err}", REFUSED)
    except (OSError, RuntimeError) as err:
        return _first_tells(team, f"error: {err}", 1)
    except KeyboardInterrupt:
        return _first_tells(team, "interrupted; no pair was written", 128 + signal.SIGINT)
    if not (team and team.rank):
        _show(summary)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _first_tells(team: Team | None, line: str, code: int) -> int:
    """Every rank ends for the same reason; one says it."""
    if not (team and team.rank):
        _tell(line)
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Encode text files into PREFIX_<key>_document.bin and .idx for training.",
        epilog="The same command again goes on where an interrupted one stopped. Exit codes: 0 "
        "done; 2 refused, with a message, and no pair is written; 1 failed on the way; 130 or 143 "
        "interrupted or terminated.",
    )
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for names, settings in options:
            group.add_argument(*names.split(), **settings)
    return parser.parse_args()


def _show(summary: Summary) -> None:
    for prefix in summary.prefixes:
        print(f"{prefix}.bin, {prefix}.idx")
    print(f"{summary.documents} documents, {summary.tokens} tokens, {summary.size} bytes read")
    for key, count in summary.special.items():
        if count:
            print(f"{count} documents spell out a special token under {key} (--special-text)")
    if summary.separator_missed:
        print("--separator comes up in no file: each became one document")
    for reason, count in summary.refused.most_common():
        print(f"left out: {count} {reason}")
    for refusal in summary.first_refusals:
        print(f"  {refusal}")
    if summary.refusals:
        print(f"  all in {summary.refusals}")


if __name__ == "__main__":
    raise SystemExit(tool(main))
