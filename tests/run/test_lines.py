"""A disk that fills up while lines are added."""

import errno
import os

import pytest

from megatron_ngpt.run import lines as room
from megatron_ngpt.run.lines import LineFile


@pytest.fixture
def disk(monkeypatch):
    """Takes as many bytes as its only element says, then is full."""
    left, write = [1 << 20], os.write

    def limited(handle: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(handle, data[: left[0]])
        left[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", limited)
    return left


def test_lines_wait_for_a_full_disk(tmp_path, disk, capfd):
    lines = LineFile(tmp_path / "lines")
    disk[0] = 12  # in the middle of the second line
    for number in range(5):
        lines.write(f"line {number}")
    told = capfd.readouterr().err
    assert told.count("No space left on device; the run goes on, its lines wait") == 1
    disk[0] = 1 << 20
    lines.write("line 5")
    lines.close()
    assert (tmp_path / "lines").read_text().splitlines() == [f"line {n}" for n in range(6)]
    assert "written again, with all lines that waited" in capfd.readouterr().err


def test_what_was_never_written_is_counted(tmp_path, disk, capfd, monkeypatch):
    monkeypatch.setattr(room, "LIMIT", 20)
    lines = LineFile(tmp_path / "lines")
    disk[0] = 0
    for number in range(7):
        lines.write(f"line {number}")
    lines.close()
    assert "lines: 7 lines could not be written" in capfd.readouterr().err
    assert len(lines.waiting) <= 30


def test_nothing_is_written_to_what_is_no_longer_ones_own(tmp_path):
    def guard():
        raise KeyError("not yours")

    lines = LineFile(tmp_path / "lines", guard)
    with pytest.raises(KeyError):
        lines.write("line")
    assert not (tmp_path / "lines").exists()
