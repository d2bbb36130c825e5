"""What differs from the run so far is told with its consequence, or refused."""

from dataclasses import fields, replace

import pytest

from megatron_ngpt.config import Config, parse_config, save_config
from megatron_ngpt.run.changes import (
    BREAKS,
    CONSEQUENCES,
    OF_ONE_START,
    changes,
    consequence,
    refuse,
)
from megatron_ngpt.run.ledger import (
    Entry,
    before,
    code_version,
    flat,
    package_versions,
    plain,
    read_ledger,
    record,
)

DEFAULTS = plain(flat(Config().to_dict()))


def corpus(name="a", tokens=100, weight=1.0, crc=7, prefix="/data/a"):
    identity = {"tokens": tokens, "bin_pieces": crc}
    return {"name": name, "prefix": prefix, "weight": weight, "epochs": 0, "identity": identity}


def entry(settings=None, blends=None, **more) -> Entry:
    blends = blends or [(0, [corpus()])]
    corpora = [
        {"setting": "data.train", "first_token": first, "corpora": list(blend)}
        for first, blend in blends
    ]
    return Entry(settings={**DEFAULTS, **(settings or {})}, corpora=corpora, **more)


def told(old: Entry, new: Entry, tokens: int = 50) -> list[str]:
    return [str(change) for change in changes(old, new, DEFAULTS, tokens)]


def broken(old: Entry, new: Entry, tokens: int = 50) -> list[str]:
    return [change.name for change in changes(old, new, DEFAULTS, tokens) if change.breaks]


def test_the_same_start_changes_nothing():
    assert told(entry(), entry()) == []


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"train.seed": 7}, ["train.seed"]),
        ({"data.shuffle_unit": 2048}, ["data.shuffle_unit"]),
        ({"data.shuffle_unit": 1024}, []),  # which is what 0 meant
        ({"data.seq_len": 512}, ["data.seq_len"]),
        ({"data.seq_len": 512, "data.shuffle_unit": 1024}, []),
        ({"data.valid_fraction": 0.1}, ["data.valid_fraction"]),
        ({"data.valid": "x"}, ["data.valid"]),
        ({"data.valid": "x", "data.valid_fraction": 0}, ["data.valid", "data.valid_fraction"]),
        ({"optim.lr": 0.5, "train.steps": 2000, "train.global_batch": 64}, []),
        ({"parallel.tp": 2, "train.micro_batch": 8, "logging.dir": "x"}, []),
    ],
)
def test_what_breaks_a_guarantee(settings, names):
    assert sorted(broken(entry(), entry(settings))) == names
    assert len(told(entry(), entry(settings))) == len(settings)


def test_what_concerns_one_start_alone_is_not_told():
    assert told(entry(), entry(dict.fromkeys(OF_ONE_START, "x"))) == []
    assert DEFAULTS.keys() >= OF_ONE_START


def test_a_held_back_share_that_nobody_holds_back_breaks_nothing():
    old, new = (entry({"data.valid": "x", "data.valid_fraction": f}) for f in (0.1, 0.2))
    assert broken(old, new) == []


@pytest.mark.parametrize(
    ("blend", "name"),
    [
        ([corpus(prefix="/moved/b")], None),
        ([corpus(weight=5.0)], None),  # the only one
        ([corpus(tokens=120)], "data.train"),
        ([corpus(crc=8)], "data.train"),
        ([corpus(), corpus("b", 9)], "data.train"),
    ],
)
def test_corpora_are_told_apart_by_what_is_in_them(blend, name):
    assert broken(entry(), entry(blends=[(0, blend)])) == [name] * bool(name)


def test_weights_and_order_of_a_blend():
    two = [corpus(weight=3.0), corpus("b", 9, weight=1.0)]
    heavier = [corpus(weight=6.0), corpus("b", 9, weight=2.0)]
    other = [corpus(weight=1.0), corpus("b", 9, weight=1.0)]
    assert broken(entry(blends=[(0, two)]), entry(blends=[(0, heavier)])) == []
    assert broken(entry(blends=[(0, two)]), entry(blends=[(0, other)])) == ["data.train weights"]
    assert broken(entry(blends=[(0, two)]), entry(blends=[(0, two[::-1])])) == ["data.train"]


def test_stages_to_come_may_change_and_those_that_were_read_may_not():
    first, later = (0, [corpus()]), (80, [corpus("b", 9)])
    assert broken(entry(blends=[first]), entry(blends=[first, later]), tokens=80) == []
    assert broken(entry(blends=[first]), entry(blends=[first, later]), tokens=81) == ["data.stages"]


def test_a_manifest_on_one_side_alone_is_no_difference():
    new = corpus()
    new["identity"]["crc32"] = {".bin": 1}
    assert broken(entry(), entry(blends=[(0, [new])])) == []


def test_lines_name_both_values_and_what_follows():
    lines = told(
        entry(code="0.1 a", packages={"torch": "2.11"}, topology={"ranks": 2}),
        entry({"optim.lr": 0.5}, code="0.1 b", packages={"torch": "2.13"}, topology={"ranks": 4}),
    )
    assert lines == [
        "optim.lr: 0.001 -> 0.5: steps from here on follow it, those before did not",
        "code: 0.1 a -> 0.1 b: later steps may be computed otherwise",
        "torch: 2.11 -> 2.13: later steps may differ in their last bits",
        "ranks: 2 -> 4: computes the same, up to the order of summation",
    ]


def test_refused_unless_accepted_by_name():
    found = changes(entry(), entry({"train.seed": 7, "optim.lr": 2}), DEFAULTS, 50)
    with pytest.raises(ValueError, match=r"train.seed: 1234 -> 7: .*permuted anew") as refused:
        refuse(found, ["data.train"], 4)
    assert "--train.accept_changes '[train.seed]'" in str(refused.value)
    assert "optim.lr" not in str(refused.value)
    refuse(found, ["train.seed"], 4)


def test_a_setting_that_the_older_version_had_not_counts_as_its_default():
    old = entry()
    old.settings.pop("data.shuffle_unit")
    old.settings["train.gone"] = 5
    assert told(old, entry()) == []
    assert broken(old, entry({"data.shuffle_unit": 2048})) == ["data.shuffle_unit"]


def test_every_setting_has_a_consequence():
    for name in DEFAULTS:
        assert consequence(name), name
    for name in BREAKS:
        assert name in DEFAULTS, name
    for start in CONSEQUENCES:
        assert any(name.startswith(start) for name in DEFAULTS) or start == "train.on_", start


def test_what_counts_is_the_last_start_before_the_checkpoint(tmp_path):
    """A start that died before its first save left no step that counts."""
    for attempt, step in ((1, 0), (2, 10), (3, 10), (4, 20)):
        record(tmp_path, Entry(attempt=attempt, step=step))
    with (tmp_path / "ledger.jsonl").open("a") as stream:
        stream.write('{"attempt": 9, "ste')
    record(tmp_path, Entry(attempt=5, step=30))
    assert [e.attempt for e in read_ledger(tmp_path)] == [1, 2, 3, 4, 5]
    counts = {step: before(tmp_path, None, step) for step in (0, 1, 10, 11, 20, 21)}
    assert counts[0] is None
    assert [counts[s].attempt for s in (1, 10, 11, 20, 21)] == [1, 1, 3, 3, 4]


def test_a_run_without_a_ledger_is_told_what_its_checkpoint_says(tmp_path):
    save_config(parse_config(["--train.seed", "7"]), tmp_path / "config.yaml")
    old = before(tmp_path / "none", tmp_path, 4)
    (change,) = changes(old, entry(), DEFAULTS, 50)
    assert (change.name, change.old, change.new, change.breaks) == ("train.seed", 7, 1234, False)


def test_an_entry_survives_the_file_and_other_versions_fields(tmp_path):
    one = replace(entry(), attempt=3, accepted=["train.seed"])
    record(tmp_path, one)
    assert read_ledger(tmp_path) == [one]
    (tmp_path / "ledger.jsonl").write_text('{"attempt": 1, "later_field": 2}\n')
    assert read_ledger(tmp_path) == [Entry(attempt=1)]
    assert {f.name for f in fields(Entry)} >= {"code", "packages", "topology", "corpora"}


def test_code_and_packages_are_known():
    assert code_version().startswith("0.")
    assert {"python", "torch", "deepspeed"} <= package_versions().keys()
