"""``tools/from_megatron_args.py``: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_ngpt.interop.megatron.arguments import Arguments, from_words
from megatron_ngpt.interop.megatron.found import Found
from megatron_ngpt.interop.megatron.translate import read_arguments, translate
from megatron_ngpt.interop.megatron.written import as_yaml

_EPILOG = """\
examples:
  python tools/from_megatron_args.py train.sh --set 1=runs/a --set 2=data/corpus_text_document
  python tools/from_megatron_args.py model_config.yaml --architecture gpt --output run.yaml
  python tools/from_megatron_args.py -- pretrain_gpt.py --num-layers 12 --hidden-size 768 ...

The script is read, never run. docs/from_megatron.md is the page for Megatron's users.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the YAML and say what it leaves out; 1 when there is none to write."""
    options = _options(sys.argv[1:] if argv is None else argv)
    try:
        args = _arguments(options)
        found = translate(args, options.architecture)
        text = as_yaml(found, options.source or "a command line")
        if options.output:
            _write(Path(options.output), text)
        else:
            print(text, end="")
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    _tell(found, options.output)
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="from_megatron_args.py",
        description="Turn a Megatron-LM or Megatron-DeepSpeed command line into our YAML.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", nargs="?", help="launch script, or YAML file of arguments")
    parser.add_argument("--output", metavar="FILE", help="where to write; default: the screen")
    parser.add_argument(
        "--architecture", choices=("ngpt", "gpt"), default="ngpt",
        help="ngpt (default): the normalized transformer of this shape, without weight decay and "
        "warm-up; gpt: the nearest to Megatron's own model",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="given",
        help="a variable of the script; 1=VALUE is its first argument",
    )  # fmt: skip
    own, words = _divided(list(argv))
    options = parser.parse_args(own)
    options.words = words
    if bool(options.source) == bool(words):
        parser.error("give a file, or -- and a command line")
    return options


def _divided(argv: list[str]) -> tuple[list[str], list[str]]:
    """What is for this tool, and the command line behind ``--``."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _arguments(options: argparse.Namespace) -> Arguments:
    if options.words:
        return from_words(options.words)
    given = {}
    for one in options.given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise ValueError(f"--set {one}: write NAME=VALUE")
        given[name] = value
    return read_arguments(Path(options.source), given)


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already: choose another --output or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _tell(found: Found, output: str | None) -> None:
    on_screen = not output and sys.stdout.isatty()  # where the YAML has just said it
    for kind, said in (("warning", found.warnings), ("left out", found.notes)):
        for text in said if not on_screen else ():
            print(f"{kind}: {text}", file=sys.stderr)
    print(
        f"{len(found.settings)} settings, {len(found.warnings)} warnings, {len(found.notes)} left "
        f"out{f'; written to {output}' if output else ''}",
        file=sys.stderr,
    )
