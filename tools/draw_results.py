"""Every figure and table of docs/results.md from the committed rows: python tools/draw_results.py

Reads docs/results/rows.jsonl and the studies in examples/experiments; writes the pictures of each
study that has rows to docs/results/NAME, and its tables between its marks in docs/results.md. Step
times are those of docs/results/steps, which benchmarks/study_steps.py measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from megatron_ngpt.console import tool
from megatron_ngpt.study.figures import draw
from megatron_ngpt.study.plan import Study, load_study
from megatron_ngpt.study.results import Row, read_rows
from megatron_ngpt.study.summary import clock_table, outcomes, tables

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = REPOSITORY / "examples/experiments"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 drawn, 2 the page or the rows are not as they have to be."""
    options = _parser().parse_args(argv)
    page, rows = options.docs / "results.md", read_rows([options.docs / "results/rows.jsonl"])
    try:
        text = page.read_text(encoding="utf-8")
        for study in studies(EXPERIMENTS):
            text = with_study(text, study, rows, options.docs / "results")
        page.write_text(text, encoding="utf-8")
    except (ValueError, OSError, ModuleNotFoundError) as err:
        print(f"draw_results.py: {err}", file=sys.stderr)
        return 2
    print(f"{page}: drawn from {len(rows)} rows")
    return 0


def studies(folder: Path) -> Iterator[Study]:
    """All of a folder, each with its variations."""
    for path in sorted(folder.glob("*.yaml")):
        yield load_study(path)
        for name in yaml.safe_load(path.read_text(encoding="utf-8")).get("overrides", {}):
            yield load_study(path, name)


def with_study(text: str, study: Study, rows: dict[str, Row], folder: Path) -> str:
    """The page with a study's part drawn anew, where the study has rows.

    Raises:
        ValueError: the page has no marks for it.
    """
    corpora = sorted({row["corpus"] for row in rows.values()})
    by_corpus = [found for digest in corpora if (found := outcomes(study, rows, digest))]
    made: list[str] = []
    for found in by_corpus:
        figures = draw(study, found, folder / study.name)
        pictures = [f"![{f.stem}](results/{study.name}/{f.name})" for f in figures]
        made += [*tables(study, found), *pictures, ""]
    for path in sorted((folder / "steps").glob(f"{study.name}*.json")):
        timed = json.loads(path.read_text(encoding="utf-8"))
        if timed["study"] == study.name:
            made += [clock_table(study, by_corpus[0] if by_corpus else [], timed), ""]
    if not made:
        return text
    begin, end = f"<!-- {study.name} -->", f"<!-- end of {study.name} -->"
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(f"results.md has no marks {begin} and {end} for the study's tables")
    return before + first + "\n\n" + "\n".join(made).rstrip() + "\n\n" + last + after


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--docs", type=Path, default=REPOSITORY / "docs", help="folder of results.md [docs]"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(tool(main))
