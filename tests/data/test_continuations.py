"""Questions out of text: one choice is what follows, the others are found elsewhere."""

import json

import pytest

from megatron_ngpt.data.continuations import questions
from tests.jobs import REPOSITORY
from tests.tools.commands import tool

TEXTS = [" ".join(f"{name}{n}" for n in range(300)) for name in ("a", "b", "c")]


def test_the_true_choice_follows_its_context_and_the_others_do_not():
    for number, question in enumerate(questions(TEXTS, 60, context=12, choice=5)):
        text = TEXTS[number % 3]
        goes_on = [question["context"] + choice in text for choice in question["choices"]]
        assert goes_on.index(True) == question["label"]
        assert goes_on.count(True) == 1
        assert len(question["context"].split()) == 12
        assert [len(choice.split()) for choice in question["choices"]] == [5] * 4
        assert all(
            any(choice.strip() in other for other in TEXTS) for choice in question["choices"]
        )


def test_labels_are_spread_and_a_seed_gives_the_same():
    found = questions(TEXTS, 400, 12, 5)
    counts = [[q["label"] for q in found].count(label) for label in range(4)]
    assert min(counts) > 60
    assert found == questions(TEXTS, 400, 12, 5)
    assert found != questions(TEXTS, 400, 12, 5, seed=1)


def test_where_lines_break_tells_nothing():
    assert "\n" not in json.dumps(
        questions([TEXTS[0].replace("a5 ", "a5\n\n  ")], 9, 12, 5)
    ).replace("\\n", "\n")


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match=r"fewer than 4 passages of 12 \+ 5 words in 1 documents"):
        questions(["a b c " * 12], 1, 12, 5)


def test_the_tool_and_its_task(tmp_path, capsys):
    yaml = pytest.importorskip("yaml")
    source, output = tmp_path / "text.jsonl", tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["--input", str(source), "--output", str(output), "--count", "7"]
    assert tool("make_questions").main(words) == 0
    assert capsys.readouterr().out == f"{output}: 7 questions out of 3 documents\n"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 7
    task = yaml.safe_load((REPOSITORY / "examples/lm_eval/continuations.yaml").read_text())
    asked = {task[key].strip("{}") for key in ("doc_to_text", "doc_to_choice", "doc_to_target")}
    assert asked == lines[0].keys()
    assert tool("make_questions").main([*words, "--context-words", "999"]) == 1
    assert "give more text" in capsys.readouterr().err
