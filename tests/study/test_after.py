"""What is measured of finished runs, and the page that is drawn of it."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from megatron_ngpt.study.after import lacks, stretched
from megatron_ngpt.study.plan import load_study
from megatron_ngpt.study.results import add_row, read_rows
from megatron_ngpt.study.summary import outcomes, tables
from tests.jobs import REPOSITORY
from tests.tools.commands import tool

TOY = REPOSITORY / "examples/experiments/toy.yaml"
STUDY = replace(load_study(TOY), lengths=(32, 64), stretched=("linear", "yarn"), spectra=True)
MEASURED = {
    "by_length": {"none": {"32": 5.0, "64": 6.0}, "yarn": {"64": 5.5}},
    "spectra": {"blocks.0.mlp.up.weight": 3.0, "blocks.1.mlp.up.weight": 5.0, "s_z.value": 1.0},
}


def row(run, loss):
    curve = [[100 * n, loss + 1 / n] for n in (1, 2, 4)]
    facts = {"seed": run.seed, "corpus": "c", "tokens": 400, "cpu_seconds": 8.0, "diverged": ""}
    names = {"id": run.id, "contestant": run.contestant, "log2_lr": run.log2_lr}
    return {**names, **facts, "loss": curve[-1][1], "curve": curve}


def rows_of(study):
    """Three rates of every contestant, one seed, the middle one best."""
    for contestant in study.contestants:
        for n in (-1, 0, 1):
            run = study.run(contestant, contestant.log2_lr + n, study.seeds[0], "c")
            yield row(run, 4.0 + abs(n) - (contestant.name == "ngpt") / 2)


def test_lengths_beyond_the_trained_one_are_tried_with_every_scaling():
    run = STUDY.run(STUDY.contestants[0], -5, 1, "c")
    asked = list(stretched(STUDY, run))
    assert asked[0] == ("none", (32, 64), [])
    assert asked[1][1:] == ([64], ["--model.rope_scaling", "linear", "--model.rope_factor", "2.0"])
    assert asked[2][2][-2:] == ["--model.rope_original", "32"]


def test_what_was_measured_later_joins_its_row(tmp_path):
    made, path = next(rows_of(STUDY)), tmp_path / "rows.jsonl"
    add_row(path, made)
    assert lacks(STUDY, read_rows([path])[made["id"]])
    add_row(path, {"id": made["id"], **MEASURED})
    add_row(path, {"id": "of a run that is not here", **MEASURED})
    joined = read_rows([path])
    assert joined == {made["id"]: made | MEASURED}
    assert not lacks(STUDY, joined[made["id"]])


def test_tables_of_what_was_measured():
    rows = {r["id"]: r | MEASURED for r in rows_of(STUDY)}
    text = "\n".join(tables(STUDY, outcomes(STUDY, rows, "c")))
    assert "| ngpt | none | 1 | 5.0000 | 6.0000 |" in text
    assert "| ngpt | yarn | 1 | - | 5.5000 |" in text
    assert "| ngpt | 1 | 4 |" in text  # the median of 3 and 5
    assert text.count("| gpt |") == 1 + 1 + 2


def test_the_page_is_drawn_from_rows_alone(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "results").mkdir()
    page, study = tmp_path / "results.md", load_study(TOY)
    for made in rows_of(study):
        add_row(tmp_path / "results/rows.jsonl", made)
    page.write_text("before\n<!-- toy -->\nold\n<!-- end of toy -->\nafter\n")
    ratio = {"median": 1.25, "q25": 1.2, "q75": 1.3}
    timed = {"study": "toy", "facts": {"device": "CPU", "threads": 1}}
    timed["results"] = {"ngpt": {"ratio": ratio}, "gpt": {"ratio": ratio}}
    (tmp_path / "results/steps").mkdir()
    (tmp_path / "results/steps/toy.json").write_text(json.dumps(timed))
    assert tool("draw_results").main(["--docs", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| ngpt | 2^-5 | 1 |" in text
    assert "(results/toy/loss.png)" in text
    tokens = float(re.search(r"\| 4.* \| ([\d.]+) \(one seed\) \|", text).group(1))
    by_clock = float(re.search(r"\| 1.25 \| ([\d.]+) \(one seed\) \|", text).group(1))
    assert by_clock == pytest.approx(tokens / 1.25, abs=0.011)
    assert (tmp_path / "results/toy/factor.png").stat().st_size > 1000
    page.write_text("no marks\n")
    assert tool("draw_results").main(["--docs", str(tmp_path)]) == 2
    assert "no marks <!-- toy -->" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_run_is_measured(tmp_path):
    content = yaml.safe_load(TOY.read_text(encoding="utf-8"))
    content |= {"limit": 1, "neighbours": 0, "seeds": [1], "baseline": "ngpt"}
    content |= {"lengths": [32, 64], "stretched": ["ntk"], "spectra": True}
    del content["contestants"]["gpt"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["--format", "text", "--train", str(REPOSITORY / "docs/training.md")]
    words += ["--valid", str(REPOSITORY / "docs/data.md"), "--output", str(tmp_path / "out")]
    program = [sys.executable, str(REPOSITORY / "tools/study.py"), str(tmp_path / "study.yaml")]
    subprocess.run([*program, *words], check=True)
    (found,) = read_rows([tmp_path / "out/results.jsonl"]).values()
    lengths = found["by_length"]
    assert {kind: list(told) for kind, told in lengths.items()} == {
        "none": ["32", "64"], "ntk": ["64"]
    }  # fmt: skip
    assert lengths["ntk"]["64"] != lengths["none"]["64"]
    assert found["spectra"]["blocks.0.mlp.up.weight"] > 1
    assert json.dumps(found)
