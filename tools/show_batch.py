"""The very tokens that the ranks of a run were given at a step, with corpus, document and offset.

    python tools/show_batch.py RUN --step K [--rank R] [--attempt N] [--json]

RUN is the run's logging.dir. Without --rank every sequence of the step is shown whole; with it,
what that rank was given, in its order. Blends, stages, lengths, topology and settings are those of
the start that did the step; a step that is still to come is shown as it is planned. Needs the
corpora, no GPU, no checkpoint and no other step's data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ngpt.console import tool
from megatron_ngpt.data.bulk import Tokenizer, load_tokenizer
from megatron_ngpt.data.provenance import check_tokenizer

if TYPE_CHECKING:
    from megatron_ngpt.train.seen import Given, StepOfRun


def main(argv: Sequence[str] | None = None) -> int:
    """Print the step; 2 when something asked for is not there."""
    options = _options(argv)
    try:
        # with torch, which --help does not wait for
        from megatron_ngpt.train.seen import find_step, open_as_read, sequences

        found = find_step(options.run_dir, options.step, options.attempt)
        tokenizer = _tokenizer(options.tokenizer, found)
        if not options.json:
            print("\n".join(_heading(found)))
        for given in sequences(found, open_as_read(found), options.rank):
            lines = [_json(given)] if options.json else _shown(given, tokenizer)
            print("\n".join(lines))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as err:
        print(f"show_batch.py: {err}", file=sys.stderr)
        return 2
    return 0


def _heading(found: StepOfRun) -> Iterator[str]:
    entry, phase, degrees = found.entry, found.phase, found.degrees
    train, length = phase.config.train, phase.config.data.seq_len
    yield (
        f"step {found.step}: tokens {found.first_token:,} to {found.last_token - 1:,} of the run, "
        f"{train.global_batch} sequences of {length} in micro-batches of {train.micro_batch}"
    )
    shape = " x ".join(f"{axis} {getattr(degrees, axis)}" for axis in ("pp", "dp", "cp", "tp"))
    state = "" if found.done else "; NOT DONE YET, or its record is gone: as it is planned"
    yield f"as attempt {entry.attempt} did it, which began after step {entry.step}: {shape}{state}"


def _shown(given: Given, tokenizer: Tokenizer | None) -> Iterator[str]:
    """A sequence, document after document."""
    ranks = ", ".join(map(str, given.ranks))
    yield ""
    yield (
        f"rank {ranks}, micro-batch {given.micro_batch}, row {given.row}: sample {given.sample} of "
        f"{given.corpus} ({given.prefix}), pass {given.passed + 1}"
    )
    for piece in given.pieces:
        ids = given.tokens[piece.first : piece.first + piece.length]
        last = piece.offset + piece.length - 1
        yield f"  document {piece.document}, tokens {piece.offset} to {last}:"
        yield tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids.tolist()))


def _json(given: Given) -> str:
    facts = {
        **vars(given),
        "tokens": given.tokens.tolist(),
        "targets": given.targets.tolist(),
        "pieces": [piece._asdict() for piece in given.pieces],
    }
    return json.dumps(facts)


def _tokenizer(asked: str, found: StepOfRun) -> Tokenizer | None:
    """The one asked for, or the run's own; ids are shown where there is none."""
    data = found.phase.config.data
    path = asked or data.tokenizer
    if not asked and not Path(path).is_file():
        return None
    tokenizer = load_tokenizer(path)
    check_tokenizer(data.tokenizer_sha256, tokenizer.path, "--tokenizer")
    return tokenizer


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="logging.dir of the run")
    parser.add_argument("--step", type=int, required=True, help="counted from 1")
    parser.add_argument("--rank", type=int, help="a rank of the start that did the step")
    parser.add_argument(
        "--attempt", type=int, default=0, help="of a step done several times, which start's [last]"
    )
    parser.add_argument("--tokenizer", default="", help="another one than the run's")
    parser.add_argument("--json", action="store_true", help="a JSON object for each sequence")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(tool(main))
