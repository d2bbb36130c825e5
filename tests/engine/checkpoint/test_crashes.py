"""Kills at every step of a save, in one process: each leaves a checkpoint that resumes."""

import itertools
import os
import shutil
import sys
from pathlib import Path

from megatron_ngpt.engine.checkpoint import storage
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.checkpoint.index import check_files, read_index
from megatron_ngpt.run.failed import SaveFailed
from tests.distributed import run
from tests.engine.checkpoint.saving import (
    advance,
    at,
    build,
    names,
    resume_told,
    same,
    save_steps,
)
from tests.jobs import whole_state

CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


class Killed(BaseException):
    """What a dead process would not have done."""


class Killer:
    """From its n-th change of the file system on, a process does nothing more to it."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.last = ""
        sys.addaudithook(self)  # sees every change that Python makes, whichever function makes it
        storage.FILE_BYTES = 50_000

    def __call__(self, event: str, details: tuple) -> None:
        if self.left is None or event not in CHANGES or not _changes(event, details):
            return
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.last = f"{event} {Path(details[0]).name}"


def _changes(event: str, details: tuple) -> bool:
    return event != "open" or bool(details[2] & (os.O_WRONLY | os.O_RDWR))


def check_whole(checkpoint: Path) -> None:
    content = read_index(checkpoint)
    check_files(checkpoint, content["files"], content, checksums=True)


def _kill_everywhere(mesh, folder: Path) -> list[tuple]:
    """Save a third checkpoint again and again, dying one change later each time."""
    engine, checkpointer = build(mesh, folder, checkpoint={"keep": 2, "asynchronous": False})
    states = save_steps(engine, checkpointer, [1, 2])
    template = shutil.copytree(checkpointer.folder, folder / "template")
    killer, found = Killer(), []
    for changes in itertools.count():
        shutil.rmtree(checkpointer.folder)
        shutil.copytree(template, checkpointer.folder)
        checkpointer.resume()
        advance(engine, [3])
        states[3] = whole_state(engine)
        died = _save_until(checkpointer, killer, changes)
        complete = [n for n in names(checkpointer.folder) if n.startswith("step_")]
        for name in complete:
            check_whole(checkpointer.folder / name)
        fresh = Checkpointer(engine.config, engine)
        progress, told = resume_told(fresh)
        good = same(states[progress.step], whole_state(engine))
        latest = (fresh.folder / "latest").read_text().strip()
        found.append((killer.last, complete, progress, told, good, latest, names(fresh.folder)))
        if not died:
            return found


def _save_until(checkpointer: Checkpointer, killer: Killer, changes: int) -> bool:
    killer.left = changes
    try:
        checkpointer.save(at(3))
    except SaveFailed:
        return True
    finally:
        killer.left = None
    return False


def test_a_save_may_die_after_any_change_of_the_file_system(tmp_path):
    found = run(1, _kill_everywhere, tmp_path)[0]
    steps = [progress.step for _, _, progress, _, _, _, _ in found]
    published = steps.index(3)
    assert found[published][0].startswith("os.rename .writing_step_00000003_")
    assert steps == [2] * published + [3] * (len(found) - published)
    assert sum("rank_00000_" in last for last, *_ in found) > 2, "among the files with tensors"
    assert len(found) - published > 7, "old checkpoints are deleted file by file"
    for last, complete, progress, told, good, latest, after in found:
        assert told == "", last
        assert good, last
        assert [int(name[-1]) for name in complete] in ([1, 2], [1, 2, 3], [2, 3]), last
        assert latest == f"step_{progress.step:08d}", last
        assert not [name for name in after if name.startswith(".writing")], last
    assert found[-1][-1] == ["latest", "step_00000002", "step_00000003"]
