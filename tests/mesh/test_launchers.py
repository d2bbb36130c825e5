"""Two processes through every launcher that this machine has."""

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HELLO = Path(__file__).with_name("hello.py")
BESIDE_PYTHON = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
WORDS = {
    "torchrun": ["--standalone", "--nproc-per-node", "2"],
    "deepspeed": ["--num_accelerators", "2", "--master_port"],  # and a free one
    "mpirun": ["--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable],
}

pytestmark = pytest.mark.slow


@pytest.fixture(params=WORDS)
def launch(request):
    """Run hello.py on two ranks with the exit code that rank 1 shall end with."""
    command = shutil.which(request.param, path=BESIDE_PYTHON)
    if not command or (request.param == "mpirun" and not find_spec("mpi4py")):
        pytest.skip(f"no {request.param} here")

    def run(code: int) -> subprocess.CompletedProcess:
        words = [command, *WORDS[request.param]]
        if words[-1] == "--master_port":
            with socket.create_server(("127.0.0.1", 0)) as probe:
                words.append(str(probe.getsockname()[1]))
        clean = {
            n: v for n, v in os.environ.items() if not n.startswith(("MASTER_", "TORCHELASTIC"))
        }
        env = {**clean, "PATH": BESIDE_PYTHON, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*words, str(HELLO), str(code)], env=env, capture_output=True, text=True, timeout=120
        )

    return run


def test_two_processes_meet_and_end_well(launch):
    ended = launch(0)
    assert ended.returncode == 0, ended.stderr
    told = {line for line in ended.stdout.splitlines() if line.startswith("rank")}
    assert told == {f"rank {rank} local {rank} sum 3 words ['0']" for rank in (0, 1)}


def test_a_failing_rank_fails_the_job(launch):
    assert launch(3).returncode != 0
