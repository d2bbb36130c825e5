"""Run a study: python tools/study.py examples/experiments/toy.yaml --train TEXT --valid TEXT

Runs what is missing of a comparison that a file describes, several runs at a time, and writes a
table, pictures and a page. Finished runs, those in --results among them, are not run again; a call
that was ended goes on where it was. Several calls on one --output share the work, as the tasks of a
SLURM array do: sbatch --array=0-7 --wrap 'python tools/study.py FILE ... --jobs 1'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_ngpt.console import tool
from megatron_ngpt.study.corpus import prepare
from megatron_ngpt.study.figures import draw
from megatron_ngpt.study.plan import Study, load_study, missing
from megatron_ngpt.study.results import losses, read_rows
from megatron_ngpt.study.runner import Place, Runner, StudyFailed, ends_with_us
from megatron_ngpt.study.summary import outcomes, page, table


def main() -> int:
    """Exit code 0 finished, 1 a run fails, 2 what was asked cannot be done, 130 interrupted."""
    options = _options()
    try:
        study = load_study(options.study, options.variation)
        folder = options.output or Path("runs/studies") / study.name
        if options.draw:
            return _write(study, options.results, options.draw, None)
        place = Place(folder, tuple(options.results), options.keep_runs)
        if not (options.train and options.valid):
            raise ValueError("--train and --valid name the text; with --draw neither is needed")
        with ends_with_us():
            log = folder / "corpus.log"
            text = (options.train, options.valid)
            corpus = prepare(folder / "corpus", *text, study.vocab_size, log, options.format)
            if options.plan:
                for run in missing(study, losses(place.known()), corpus.digest):
                    print(run.label)
                return 0
            runner = Runner(study, corpus, place, options.jobs, options.threads, _tell)
            runner.go()
        return _write(study, [*options.results, place.rows], folder, corpus.digest)
    except StudyFailed as err:
        print(f"study.py: {err}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as err:
        print(f"study.py: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ended: the same command goes on from here", file=sys.stderr)
        return 130


def _tell(line: str) -> None:
    print(line, flush=True)


def _write(study: Study, results: list[Path], folder: Path, corpus: str | None) -> int:
    """Table, pictures and page of the rows that are there."""
    rows = read_rows(results)
    corpora = {corpus} if corpus else {row["corpus"] for row in rows.values()}
    if len(corpora) != 1:
        raise ValueError(
            f"{', '.join(map(str, results))}: rows of {len(corpora)} corpora: --draw needs the "
            "rows of one"
        )
    digest = corpora.pop()
    found = outcomes(study, rows, digest)
    if not found:
        raise ValueError(
            f"{', '.join(map(str, results))}: no rows of this study as its file is now"
        )
    figures = draw(study, found, folder)
    left = len(missing(study, losses(rows), digest))
    (folder / "README.md").write_text(page(study, found, figures, left), encoding="utf-8")
    print(table(study, found))
    print(f"\n{folder / 'README.md'}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("study", type=Path, help="YAML file, see docs/studies.md")
    add("--train", nargs="+", help="files of text to train on, as preprocess_data.py takes them")
    add("--valid", nargs="+", help="other documents, for the validation loss")
    add("--format", default="jsonl", help="of the text, as preprocess_data.py takes it")
    add("--variation", default="", help="name of an entry of the file's overrides, such as toy")
    add("--results", type=Path, nargs="*", default=[], help="rows that are there already")
    add("--output", type=Path, help="folder; without it runs/studies/NAME")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--threads", type=int, default=1, help="threads of each run")
    add("--keep-runs", action="store_true", help="leave the folders of finished runs")
    add("--plan", action="store_true", help="print the runs that can be started now, start none")
    add("--draw", type=Path, help="only write table, pictures and page of --results here")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(tool(main))
