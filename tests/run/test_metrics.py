import fcntl
import json
import os
import struct
import termios
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from pathlib import Path

import pytest

from megatron_ngpt.config import Config, load_config, parse_config
from megatron_ngpt.run.metrics import RunLog, check_outputs


def configured(folder: Path, *more: str) -> Config:
    return parse_config(["--logging.dir", str(folder), "--train.steps", "20", *more])


def record(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "lr": 1e-3, "tokens_per_second": 1234.5, **more}


def log_steps(config: Config, steps: range, resumed_at: int = 0, **more: float) -> None:
    with RunLog(config, resumed_at, enabled=True) as log:
        for step in steps:
            log.step(record(step, **more))


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]


def test_the_resolved_configuration_is_saved_and_read_back(tmp_path):
    config = configured(tmp_path / "new" / "run", "--model.width", "64")
    log_steps(config, range(0))
    assert load_config(tmp_path / "new" / "run" / "config.yaml") == config


def test_every_step_is_on_disk_at_once(tmp_path):
    with RunLog(configured(tmp_path), 0, enabled=True) as log:
        for step in (1, 2):
            log.step(record(step, valid_loss=0.5))
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == [
                record(n, valid_loss=0.5) for n in range(1, step + 1)
            ]


def test_other_ranks_write_nothing(tmp_path, capfd):
    with RunLog(configured(tmp_path / "none"), 3, enabled=False) as log:
        log.step(record(4))
    assert not (tmp_path / "none").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "rest", [b"", b'{"step": 9, "lo', b'{"step": 4}\n\xff\x00\x00', b"\n\n[]\n"]
)
@pytest.mark.parametrize("resumed_at", [0, 4, 6])
def test_steps_after_the_resumed_one_are_set_apart(tmp_path, resumed_at, rest):
    config = configured(tmp_path)
    log_steps(config, range(1, 7))
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(rest)
    kept = list(range(1, resumed_at + 1)) + [4] * (b"4}" in rest and resumed_at >= 4)
    log_steps(config, range(resumed_at + 1, 9), resumed_at)
    assert steps_in(tmp_path) == kept + list(range(resumed_at + 1, 9))
    undone = tmp_path / "metrics_undone.jsonl"
    lines = undone.read_text().splitlines() if undone.exists() else []
    again = [4] if b"4}" in rest and resumed_at < 4 else []
    assert [json.loads(line)["step"] for line in lines] == [*range(resumed_at + 1, 7), *again]


def test_lines_without_a_terminal(tmp_path, capfd):
    with RunLog(configured(tmp_path, "--logging.every", "4"), 10, enabled=True) as log:
        for step in range(11, 20):
            log.step(record(step, **({"valid_loss": 2.5} if step == 13 else {})))
        log.step(record(20))
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "resumed at step 10 of 20"
    assert [line[21:].split(",")[0] for line in lines[1:]] == [
        f"step {n}/20" for n in (12, 13, 16, 20)
    ]
    assert "valid_loss 2.5000" in lines[2]
    for line in (lines[1], lines[3], lines[4]):
        assert "valid_loss" not in line
        assert "1,234 tokens/s" in line
    assert lines[-1].endswith("0:00:00 left")


def on_a_terminal(config: Config, steps: range, resumed_at: int) -> str:
    """What a run whose standard error is a terminal draws there."""
    keyboard, screen = os.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    stream = os.fdopen(screen, "w")
    with stream, redirect_stderr(stream), RunLog(config, resumed_at, enabled=True) as log:
        for step in steps:
            log.step(record(step, **({"valid_loss": 2.5} if step == steps[-1] else {})))
    return b"".join(read_all(keyboard)).decode().rstrip()


def read_all(terminal: int) -> Iterator[bytes]:
    """Everything its programs wrote; what the kernel has not passed on yet is waited for."""
    with suppress(OSError):  # EIO tells that the other end is closed and nothing is left
        while chunk := os.read(terminal, 1 << 16):
            yield chunk
    os.close(terminal)


def test_a_bar_on_a_terminal(tmp_path, capsys):
    drawn = on_a_terminal(configured(tmp_path), range(6, 21), 5).split("\r")
    assert "25%" in drawn[1]
    assert "5/20" in drawn[1]
    assert "20/20" in drawn[-1]
    assert "loss 0.050, 1,234 tokens/s" in drawn[-1]
    assert all(len(line) <= 101 for line in drawn)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "resumed at step 5 of 20"
    assert "valid_loss 2.5000" in said, "evaluations stay readable above the bar"
    assert said.count("step 20/20") == 1


@pytest.mark.parametrize("setting", ["logging.dir", "checkpoint.dir"])
def test_a_folder_that_cannot_be_made_is_named_with_its_setting(tmp_path, setting):
    (tmp_path / "file").write_text("")
    options = [f"--{setting}", str(tmp_path / "file" / "run")]
    with pytest.raises(ValueError, match=rf"{setting} = .*file/run: no files can be made there"):
        check_outputs(configured(tmp_path, *options))
