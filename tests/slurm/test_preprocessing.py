"""preprocess.sbatch: many nodes tokenise one corpus, also when a process is killed."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.jobs import REPOSITORY
from tests.slurm.cluster import wait_for

PAIR = "corpus_text_document"


@pytest.fixture
def corpus(tmp_path) -> list[str]:
    """Arguments of tools/preprocess_data.py for some text, less the output."""
    path = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"text": f"document {i} says {i * i} words\n"}) for i in range(30_000))
    path.write_text("\n".join(lines))
    train = ["--input", str(path), "--vocab-size", "300", "--output", str(tmp_path / "t.model")]
    _tool("train_tokenizer", *train)
    return ["--input", str(path), "--tokenizer-model", str(tmp_path / "t.model"), "--append-eod"]


def _tool(name: str, *arguments: str) -> None:
    command = [sys.executable, f"tools/{name}.py", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done


def _kill_one(prefix: Path) -> bool:
    """Kill a rank that is at work, once a shard is finished and others are not."""
    finished = list(Path(f"{prefix}.parts").glob("*")) if Path(f"{prefix}.parts").exists() else []
    if len(finished) < 2:
        return False
    for process in psutil.process_iter():
        try:
            mine = str(prefix) in process.cmdline() and "python" in process.name()
            names = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
            if mine and any(process.environ().get(name) == "1" for name in names):
                os.kill(process.pid, signal.SIGKILL)
                return True
        except psutil.Error:
            continue
    return False


def nothing_first(launcher: str) -> str:
    """A launcher that starts no process the first time and ends with 0, as srun may."""
    return f"""bash -c '[ -z "${{SLURM_RESTART_COUNT:-}}" ] || exec {launcher} "$@"' _"""


@pytest.mark.skipif(not find_spec("mpi4py"), reason="needs mpi4py")
@pytest.mark.parametrize(
    "mpi",
    [nothing_first("srun --mpi=pmix --kill-on-bad-exit=1"), "mpirun --allow-run-as-root"],
    ids=["srun, which starts nothing at first", "mpirun"],
)
def test_preprocessing_survives_a_killed_rank(pretraining, corpus, tmp_path, mpi):
    """The pair is the single process's, byte for byte."""
    run = pretraining(mpi)
    run.words = [
        *corpus,
        "--shard-mb",
        "0.02",
        "--output-prefix",
        str(tmp_path / "many" / "corpus"),
    ]
    (tmp_path / "many").mkdir()
    run.submit("--nodes=2", script="preprocess.sbatch", bare=True)
    restarts = int("srun" in mpi)
    if restarts:
        run.requeued(1)
        assert "requeue: exit code 0, " in run.said
    wait_for(lambda: _kill_one(tmp_path / "many" / "corpus") or run.ended(), 120, f"shards\n{run}")
    run.requeued(restarts + 1)
    assert run.end() == "COMPLETED", run
    (tmp_path / "one").mkdir()
    _tool("preprocess_data", *corpus, "--output-prefix", str(tmp_path / "one" / "corpus"))
    for ending in ("bin", "idx"):
        ours, theirs = (tmp_path / f / f"{PAIR}.{ending}" for f in ("many", "one"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_preprocessing_that_never_starts_gives_up(pretraining, corpus, tmp_path):
    run = pretraining("true")
    run.site.write_text(run.site.read_text().replace("tries=3", "tries=1"))
    run.words = [*corpus, "--output-prefix", str(tmp_path / "corpus")]
    run.submit("--nodes=2", script="preprocess.sbatch", bare=True)
    assert run.end() == "FAILED", run
    assert run.facts()["Restarts"] == "0"
    assert "give up: 1 attempts in a row finished no shard, now: exit code 0, " in run.said
