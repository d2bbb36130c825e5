"""What runs beside a step."""

import json

import pytest

from benchmarks import overlap
from benchmarks.overlap import Span, Timeline


def test_time_shared_is_counted_once_a_pair():
    timeline = Timeline()
    spans = [("step", 0, 4), ("read", 3, 6), ("step", 5, 9), ("sum", 1, 2), ("sum", 10, 12)]
    timeline.spans = [Span(name, begin, end, "main") for name, begin, end in spans]
    assert timeline.total("step") == 8
    assert timeline.inside("step", "read") == 2
    assert timeline.inside("step", "read", "sum") == 3


def test_a_watched_function_answers_as_before():
    class Owner:
        @staticmethod
        def double(value):
            return 2 * value

    timeline = Timeline()
    timeline.watch(Owner, "double", "doubling")
    assert Owner.double(4) == 8
    assert [span.name for span in timeline.spans] == ["doubling"]


@pytest.mark.slow
def test_two_ranks(tmp_path, capsys):
    result, trace = tmp_path / "result.json", tmp_path / "trace.json"
    words = ["--preset", "toy", "--steps", "2", "--stages", "1", "--json", str(result)]
    assert overlap.main([*words, "--trace", str(trace)]) == 0
    row = json.loads(result.read_text())["results"]["1"]
    assert 0 < row["projection"] < row["collectives"] < 1
    names = [event["name"] for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("step") == names.count("backward") == 2
    assert "read a batch" in names
    assert "| 1 |" in capsys.readouterr().out
