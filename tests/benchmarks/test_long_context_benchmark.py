"""What the benchmark of long sequences prints and writes; never how fast anything is."""

import json

import pytest

from benchmarks.long_context import WAYS, Job, main, report
from megatron_ngpt.config import check


def test_every_way_is_a_possible_run():
    for way in WAYS:
        check(Job(way, 2048).config)


def test_the_table_has_a_row_per_way_and_a_column_per_length():
    measured = [
        {"way": way, "length": length, "peak": length << 10, "seconds": length / 1e5}
        for way, length in (("plain", 2048), ("all", 2048), ("plain", 4096))
    ]
    lines = report({"measured": measured}).splitlines()
    assert lines[0] == "| MiB / us per token | 2,048 | 4,096 |"
    assert lines[2:] == ["| plain | 2 / 10 | 4 / 10 |", "| all | 2 / 10 |  |"]


@pytest.mark.slow
def test_memory_that_is_saved_is_seen_and_estimated(tmp_path):
    path = tmp_path / "found.json"
    words = ["--lengths", "2k", "--ways", "plain,loss chunks,recompute,attention kept,all,cp2 ring"]
    words += ["--json", str(path), "--table", str(tmp_path / "table.md")]
    assert main([*words, "--plot", str(tmp_path / "plot.png")]) == 0
    found = {m["way"]: m for m in json.loads(path.read_text())["measured"]}
    assert found["all"]["peak"] < found["loss chunks"]["peak"] < found["plain"]["peak"]
    assert found["recompute"]["peak"] < found["attention kept"]["peak"] < found["plain"]["peak"]
    assert found["cp2 ring"]["peak"] < 0.6 * found["plain"]["peak"]
    assert "| attention kept |" in (tmp_path / "table.md").read_text()
    for measured in found.values():
        assert measured["estimate"] == pytest.approx(measured["peak"], rel=0.15)
    assert (tmp_path / "plot.png").stat().st_size > 1000
