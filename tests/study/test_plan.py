"""What a study runs next, from made-up losses."""

import math
from pathlib import Path

import pytest
import yaml

from megatron_ngpt.study.plan import Study, around_best, load_study, merged, missing

EXPERIMENTS = Path(__file__).resolve().parents[2] / "examples/experiments"
TOY = EXPERIMENTS / "toy.yaml"


def bowl(bottom: float):
    """A loss that is lowest at a learning rate, a little different for each seed."""
    return lambda run: (run.log2_lr - bottom) ** 2 + run.seed / 1000


def finish(study: Study, loss) -> dict[str, float]:
    """Run everything that is missing, round by round."""
    known: dict[str, float] = {}
    while wanted := missing(study, known, "corpus"):
        known |= {run.id: loss(run) for run in wanted}
        assert len(known) < 100
    return known


@pytest.mark.parametrize("bottom", [-5.0, -9.0, 1.0])
def test_walks_to_the_bottom_and_repeats_it_with_every_seed(bottom):
    study = load_study(TOY)
    known = finish(study, bowl(bottom))
    for contestant in study.contestants:
        runs = around_best(study, contestant, known, "corpus")
        assert {(run.log2_lr, run.seed) for run in runs} == {
            (bottom + n, seed) for n in (-1, 0, 1) for seed in study.seeds
        }
        assert all(run.id in known for run in runs)


def test_a_diverging_learning_rate_is_the_worst_of_all():
    study = load_study(TOY)
    known = finish(study, lambda run: math.inf if run.log2_lr > -5 else -run.log2_lr)
    best = around_best(study, study.contestants[0], known, "corpus")
    assert {run.log2_lr for run in best} == {-6.0, -5.0, -4.0}


def test_a_search_without_a_bottom_gives_up():
    study = load_study(TOY)
    known = finish(study, lambda run: run.log2_lr)
    per_contestant = len(known) / len(study.contestants)
    assert study.limit <= per_contestant <= study.limit + 3 * len(study.seeds)


def test_a_run_is_known_by_settings_and_corpus():
    study = load_study(TOY)
    contestant = study.contestants[0]
    run = study.run(contestant, -5, 1, "corpus")
    assert run.id == study.run(contestant, -5, 1, "corpus").id
    assert run.settings["optim"] == {"zero_stage": 0, "lr": 2.0**-5}
    others = [study.run(contestant, -5, 2, "corpus"), study.run(contestant, -4, 1, "corpus")]
    others.append(study.run(contestant, -5, 1, "other corpus"))
    assert len({run.id, *(other.id for other in others)}) == 4


def test_merging_goes_key_by_key():
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_studies_of_valid_settings(path, tmp_path):
    from megatron_ngpt.config import parse_config

    variations = yaml.safe_load(path.read_text(encoding="utf-8")).get("overrides", {})
    for variation in ("", *variations):
        study = load_study(path, variation)
        for contestant in study.contestants:
            run = study.run(contestant, contestant.log2_lr, 1, "corpus")
            config = tmp_path / "config.yaml"
            settings = merged(run.settings, {"data": {"train": "corpus", "valid": "other"}})
            config.write_text(yaml.safe_dump(settings), encoding="utf-8")
            assert parse_config(["--config", str(config)]).eval.every


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"baseline": "llama"}, "none of the contestants"),
        ({"seed": 3}, "unknown key seed"),
        ({"seeds": []}, "seeds is missing"),
        ({"contestants": {"gpt": {}}}, "log2_lr is missing"),
        ({"contestants": {"gpt": {"lr": 1}}}, "nothing else"),
    ],
)
def test_a_file_that_is_no_study_is_refused_by_key(change, words, tmp_path):
    content = yaml.safe_load(TOY.read_text(encoding="utf-8")) | change
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        load_study(path)
