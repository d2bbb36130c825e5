"""What is measured of a finished run beside its losses, by the ordinary tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ngpt.study.corpus import Corpus, call
from megatron_ngpt.study.plan import Run, Study


def lacks(study: Study, row: dict[str, Any]) -> bool:
    """Whether a run that went through has not been measured as its study asks."""
    wanted = {"by_length"} if study.lengths else set()
    wanted |= {"spectra"} if study.spectra else set()
    return not row["diverged"] and not wanted <= row.keys()


def measured(study: Study, run: Run, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """What a study asks for, of the run in a folder.

    ``by_length``: mean loss of whole documents by how positions are stretched, then by length.
    ``spectra``: as tools/spectra.py has them.

    Raises:
        ValueError: a tool could not do it; its last line is in the message.
    """
    found: dict[str, Any] = {}
    if study.spectra:
        found["spectra"] = _told("spectra.py", ["--checkpoint", str(folder)], folder)
    if study.lengths:
        found["by_length"] = {}
        for kind, lengths, words in stretched(study, run):
            words = ["--checkpoint", str(folder), "--data", str(corpus.valid), *words]
            words += ["--lengths", ",".join(map(str, lengths)), "--buckets", "1"]
            told = _told("evaluate.py", words, folder)["loss"]
            means = {length: round(parts[0], 5) for length, parts in told.items()}
            found["by_length"].setdefault(kind, {}).update(means)
    return found


def stretched(study: Study, run: Run) -> Iterator[tuple[str, Sequence[int], list[str]]]:
    """A kind of scaling, the lengths for it, and the words that ask for it."""
    trained = run.settings["data"]["seq_len"]
    yield "none", study.lengths, []
    for kind in study.stretched:
        for length in (n for n in study.lengths if n > trained):
            words = ["--model.rope_scaling", kind, "--model.rope_factor", str(length / trained)]
            if kind == "yarn":
                words += ["--model.rope_original", str(trained)]
            yield kind, [length], words


def _told(name: str, words: Sequence[str], folder: Path) -> dict[str, Any]:
    output = folder / "told.json"
    call(name, [*words, "--output", str(output)], folder / "measured.log")
    told: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return told
