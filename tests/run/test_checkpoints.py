"""A folder of checkpoints that somebody has changed by hand."""

import json
from pathlib import Path

import pytest

from megatron_ngpt.run.attempts import Attempt
from megatron_ngpt.run.checkpoints import (
    begin,
    checkpoints,
    find_checkpoint,
    point_latest,
    publish,
    settle,
    step_of,
)
from megatron_ngpt.run.resume import last_saved


def save(folder: Path, *steps: int, keep: int = 0) -> None:
    for step in steps:
        temporary = begin(folder, step)
        (temporary / "state.json").write_text(json.dumps({"step": step, "tokens": step * 10}))
        publish(temporary, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saves_follow_one_another(tmp_path):
    save(tmp_path, 2, 4, 6, keep=2)
    assert names(tmp_path) == ["latest", "step_00000004", "step_00000006"]
    assert settle(tmp_path) == []


def test_a_folder_renamed_to_a_higher_step_is_what_its_state_says(tmp_path):
    save(tmp_path, 2, 4, 6)
    (tmp_path / "step_00000002").rename(tmp_path / "step_00000900")
    assert step_of(tmp_path / "step_00000900") == 2
    assert find_checkpoint(tmp_path).name == "step_00000006"
    (line,) = settle(tmp_path)
    assert "step_00000900 holds step 2, whatever its name says" in line
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["6", "4", "2"]


def test_a_copy_under_another_name_is_set_aside(tmp_path):
    save(tmp_path, 4, 6)
    copy = tmp_path / "step_00000900"
    copy.mkdir()
    (copy / "state.json").write_text((tmp_path / "step_00000006" / "state.json").read_text())
    settle(tmp_path)
    assert names(tmp_path) == [
        *("latest", "misnamed_step_00000900", "step_00000004", "step_00000006"),
    ]


def test_latest_edited_goes_back(tmp_path):
    save(tmp_path, 2, 4, 6)
    (tmp_path / "latest").write_text("step_00000002\n")
    told = settle(tmp_path)
    assert len(told) == 2
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002"]
    assert {"undone_step_00000004", "undone_step_00000006"} < set(names(tmp_path))
    assert settle(tmp_path) == []
    save(tmp_path, 4)  # its old name is free


def test_an_interrupted_publication_is_no_edit(tmp_path, monkeypatch):
    """Killed after the checkpoint got its name, and again while the next start cleans up."""
    save(tmp_path, 2)
    rename = Path.rename

    def killed(self, target):
        if Path(target).name == "latest":
            raise KeyboardInterrupt
        return rename(self, target)

    for act in (lambda: save(tmp_path, 4), lambda: settle(tmp_path)):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                act()
    assert (tmp_path / "latest").read_text() == "step_00000002\n"
    assert settle(tmp_path) == []
    assert (tmp_path / "latest").read_text() == "step_00000004\n"
    assert names(tmp_path) == ["latest", "step_00000002", "step_00000004"]


def test_latest_that_names_nothing_is_told(tmp_path):
    save(tmp_path, 2)
    (tmp_path / "latest").write_text("step_00000009\n")
    assert settle(tmp_path) == [
        "latest names step_00000009, which is not there: the newest, step_00000002, is taken"
    ]
    point_latest(tmp_path / "step_00000002")
    assert settle(tmp_path) == []


def test_what_a_run_had_saved_counts_since_it_started_over():
    a, b = Attempt(1, saved=12), Attempt(2, resumed_at=12)
    over, after = Attempt(3, started_over=True), Attempt(4, started_over=True, saved=4)
    assert last_saved([a, b]).saved == 12
    assert last_saved([b]).resumed_at == 12
    assert last_saved([a, over]) is None
    assert last_saved([a, over, after]) == after
    assert last_saved([Attempt(1, resumed_at=0)]) is None
