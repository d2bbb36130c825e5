"""tools/estimate.py as a user runs it."""

import json
import re
import subprocess
import sys

import pytest

from tests.jobs import REPOSITORY
from tests.tools.commands import tool

CONFIG = ["--config", str(REPOSITORY / "examples/configs/ngpt_8b.yaml")]


@pytest.fixture
def estimate(capsys):
    """Exit code and output."""
    command = tool("estimate")

    def call(*arguments: str):
        code = command.main([*CONFIG, *arguments])
        return code, capsys.readouterr().out

    return call


def test_as_a_user_runs_it():
    argv = [sys.executable, "tools/estimate.py", *CONFIG, "--gpus", "512", "--gpu-memory", "80"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ngpt 8,054.3 M parameters, bf16, ZeRO 1, 512 ranks = pp 1 x dp 128")
    assert "fits in 72.0 GiB, 90% of a GPU" in lines
    assert lines[-1].startswith("First choice: dp ")


def test_a_topology_that_does_not_fit(estimate):
    code, out = estimate("--gpus", "64", "--parallel.tp", "1")
    assert code == 0
    assert "DOES NOT FIT in 72.0 GiB" in out
    first = re.search(r"First choice: (.*?): it loses least of what fits", out)
    assert re.search(rf"^{re.escape(first[1])} ", out, re.MULTILINE)


def test_a_topology_that_cannot_run_is_refused_and_others_proposed(estimate):
    code, out = estimate("--gpus", "64", "--parallel.tp", "16")
    assert code == 0
    assert out.startswith("refused: parallel.tp = 16 does not divide model.kv_heads = 8")
    assert "First choice: " in out


def test_nothing_fits(estimate):
    code, out = estimate("--gpus", "2", "--gpu-memory", "16")
    assert code == 1
    assert "Nothing fits: dp " in out


def test_json(estimate):
    code, out = estimate("--gpus", "64", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["asked"]["tp"] == 4
    memory = told["asked"]["memory"]
    assert memory.pop("total") == sum(memory.values())
    lost = [proposal["lost_seconds"] for proposal in told["proposals"]]
    assert lost == sorted(lost)
    assert all(proposal["fits"] for proposal in told["proposals"])
    assert told["reason"].startswith("First choice: ")


@pytest.mark.parametrize("wrong", [["--gpus", "0"], ["--gpus", "8", "--gpu-memory", "-1"], []])
def test_refused(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        tool("estimate").main([*CONFIG, *wrong])
    assert ended.value.code == 2
    assert "--gpu" in capsys.readouterr().err


def test_an_impossible_configuration(capsys):
    with pytest.raises(SystemExit) as ended:
        tool("estimate").main([*CONFIG, "--gpus", "8", "--model.heads", "7"])
    assert ended.value.code == 2
    assert "model.heads = 7" in capsys.readouterr().err


def test_goodput(estimate):
    """By hand: 64 nodes at 0.15 a day fail every 9,000 s; of 32 min, 60 s to start and so on."""
    words = ["--gpus", "64", "--node", "1", "--failures-per-node-day", "0.15"]
    words += ["--step-seconds", "2"]
    code, told = estimate(*words, "--checkpoint.every", "300")
    assert code == 0
    assert "failures: one in 2.5 h of the job (64 nodes, 0.15 a node and day)" in told
    assert "Each failure costs 32 min of waiting, 120 s to start" in told
    shares = dict(re.findall(r"^ +([\d,]+) +[\d.]+ +([\d.]+)%", told, re.M))
    best = re.search(r"^ +([\d,]+) .*best", told, re.M).group(1)
    assert float(shares[best]) >= max(map(float, shares.values()))
    # a failure loses 1,920 + 120 + 60 s and half of 601, and comes every 9,000 s of steps
    assert float(shares["300"]) == pytest.approx(100 * 600 / 601 / (1 + 2400 / 9000), abs=1)
    _, told = estimate(*words, "--json")
    found = json.loads(told)["goodput"]
    assert (found["nodes"], found["best_every"]) == (64, int(best.replace(",", "")))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--step-seconds", "2"], "--failures-per-node-day and --step-seconds need each other"),
        (["--failures-per-node-day", "-1", "--step-seconds", "2"], "must not be negative"),
        (["--failures-per-node-day", "1", "--step-seconds", "0"], "must be positive"),
    ],
)
def test_goodput_of_nonsense_is_refused(estimate, capsys, words, problem):
    with pytest.raises(SystemExit) as ended:
        estimate("--gpus", "8", *words)
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
