"""A run whose sequences get longer on the way, against one that was stopped and told so."""

import json

import pytest

from tests.jobs import forked, metrics, words

UNIT = {"shuffle_unit": 32}
# the third step, of 12 x 16 tokens, passes token 500
STAGES = {"stages": json.dumps([{"tokens": 500, "seq_len": 32}])} | UNIT
LATER = {"data": {"seq_len": 32} | UNIT, "train": {"global_batch": 6, "micro_batch": 1}}
VALID = {"eval": {"every": 3, "steps": 1}}


def run(corpus, folder, **sections):
    done = forked(words(corpus, folder, **VALID, **sections))
    assert done.code == 0, done
    return done


def told(folder):
    names = ("step", "tokens", "loss", "grad_norm", "lr", "valid_loss")
    return [[record.get(name) for name in names] for record in metrics(folder)]


@pytest.fixture(scope="module")
def by_hand(toy_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_hand")
    run(toy_corpus, folder, data=UNIT, train={"stop_at": 3})
    run(toy_corpus, folder, **LATER)
    return told(folder)


def test_by_itself_as_by_hand(toy_corpus, tmp_path, by_hand):
    done = run(toy_corpus, tmp_path, data=STAGES)
    assert told(tmp_path) == by_hand
    assert [record[1] for record in by_hand] == [192 * step for step in range(1, 9)]
    assert "after step 3, 576 tokens: data.stages[0]" in done.out
    assert "seq_len: 16" in (tmp_path / "config.yaml").read_text(), "the run's own, not a phase's"
    attempts = [json.loads(line) for line in (tmp_path / "attempts.jsonl").open()]
    assert [a["reason"] for a in attempts if a.get("reason")] == ["done"]


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_resumed_in_the_phase_where_it_stopped(toy_corpus, tmp_path, by_hand, stop_at):
    run(toy_corpus, tmp_path, data=STAGES, train={"stop_at": stop_at})
    assert metrics(tmp_path)[-1]["step"] == stop_at
    run(toy_corpus, tmp_path, data=STAGES)
    # evaluations of the stop itself are extra
    found = [record[:5] for record in told(tmp_path)]
    assert found == [record[:5] for record in by_hand]
