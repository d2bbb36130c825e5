"""Shards, processes, ranks and interruptions change no byte."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from megatron_ngpt.data.pairs.manifest import read_manifest, verify
from megatron_ngpt.data.preprocess import preprocess
from megatron_ngpt.data.preprocess.encode import ShardEncoder
from megatron_ngpt.data.preprocess.lock import exclusive
from megatron_ngpt.data.preprocess.parts import Parts
from megatron_ngpt.data.preprocess.plan import Shard, plan_shards
from megatron_ngpt.data.sources import Source

TOOL = Path(__file__).resolve().parents[3] / "tools/preprocess_data.py"
SHARD_MB = 0.01


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(job):
    lines = []
    return preprocess(job, lines.append), lines


def command(job, *more):
    return [
        *(sys.executable, str(TOOL), "--input", *job.inputs, "--json-keys", *job.json_keys),
        *("--output-prefix", job.output_prefix, "--tokenizer", job.tokenizer),
        *("--on-error", job.on_error, "--shard-mb", str(job.shard_mb), *map(str, more)),
    ]


def test_plan_covers_every_byte_once():
    rng = random.Random(0)
    for _ in range(200):
        sources = [
            Source(f"{i}", rng.choice([0, 1, rng.randrange(400)]), 0, rng.random() < 0.7)
            for i in range(rng.randrange(1, 9))
        ]
        shards = plan_shards(sources, True, 100)
        assert [shard.number for shard in shards] == list(range(len(shards)))
        pieces = [piece for shard in shards for piece in shard.pieces]
        assert sum(shard.size for shard in shards) == sum(source.size for source in sources)
        for source in sources:
            mine = [piece for piece in pieces if piece.path == source.path]
            assert [piece.start for piece in mine] == [0, *(piece.stop for piece in mine[:-1])]
            assert mine[-1].stop is None
            assert source.seekable or len(mine) == 1
        assert all(shard.size <= 100 or len(shard.pieces) == 1 for shard in shards)
        # A file comes up once in a shard, so that a shard can count its records by file.
        assert all(
            max(Counter(piece.path for piece in shard.pieces).values()) == 1 for shard in shards
        )


DRAW = """
import sys
from pathlib import Path
from megatron_ngpt.data.preprocess.parts import Parts
from megatron_ngpt.data.preprocess.parts import Parts
from megatron_ngpt.data.preprocess.plan import Shard
shards = [Shard(i, (), 0) for i in range(400)]
print("ready", flush=True)
sys.stdin.readline()
for shard in Parts(Path(sys.argv[1])).draw(shards, sys.argv[2]):
    print(shard.number, flush=True)
"""


def test_every_shard_is_drawn_once_although_a_process_is_killed(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.begin({}, [])
    attempt = parts.begin_drawing()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, str(parts.folder), attempt],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    drawn = [int(processes[0].stdout.readline())]
    processes[0].kill()
    for process in processes:
        drawn += map(int, process.stdout.read().split())
        process.communicate()
    assert len(drawn) == len(set(drawn))
    assert len(drawn) >= 399  # what was drawn and not yet told


def test_nothing_is_drawn_after_a_failure_or_by_an_attempt_that_is_over(tmp_path):
    parts, shards = Parts(tmp_path / "parts"), [Shard(i, (), 0) for i in range(9)]
    parts.begin({}, shards)
    old = parts.draw(shards, parts.begin_drawing())
    assert next(old).number == 0
    parts.begin({}, shards)
    new = parts.draw(shards, parts.begin_drawing())
    assert list(old) == []
    assert [next(new).number, next(new).number] == [0, 1]
    parts.fail()
    assert list(new) == []


@pytest.mark.parametrize("options", [{}, {"processes": 2, "workers": 1}, {"workers": 3}])
def test_shards_and_processes_change_no_byte(job_of, whole, tmp_path, options):
    summary, lines = run(job_of(shard_mb=SHARD_MB, **options))
    assert "shards" in lines[0]
    assert files_of(tmp_path / "out") == whole
    assert summary.refused == {"missing key": 4}
    listed = [json.loads(line) for line in Path(summary.refusals).read_text().splitlines()]
    assert [(Path(row["file"]).name[0], row["line"]) for row in listed] == [
        (f"{i}", 41 + i) for i in range(4)
    ]


def test_manifest_says_what_is_in_the_pair(job_of, whole, tmp_path):
    manifest = read_manifest(tmp_path / "whole/corpus_text_document")
    assert manifest["records"] == 600 == manifest["documents"] + 4
    assert manifest["refused"] == {"missing key": 4}
    assert [Path(one["file"]).name for one in manifest["sources"]] == [
        "0.jsonl",
        "1.jsonl",
        "2.jsonl.gz",
        "3.jsonl",
    ]
    prefix = tmp_path / "whole/corpus_n_document"
    assert "checksums agree" in verify(prefix)
    content = bytearray(Path(f"{prefix}.bin").read_bytes())
    content[77] ^= 1
    Path(f"{prefix}.bin").write_bytes(content)
    with pytest.raises(ValueError, match="CRC-32"):
        verify(prefix)


class Stop(Exception):
    pass


@pytest.fixture
def interrupt(monkeypatch):
    """Run a job that ends in the middle of the shard after so many; the numbers of those."""

    def run_until(job, after):
        original, calls = ShardEncoder._write, []

        def write(self, shard, results, watch):
            if len(calls) == after:
                next(results)
                raise Stop
            calls.append(shard.number)
            original(self, shard, results, watch)

        with monkeypatch.context() as patch, suppress(Stop):
            patch.setattr(ShardEncoder, "_write", write)
            run(job)
        return calls

    return run_until


def test_the_same_command_goes_on_without_doing_anything_again(job_of, whole, tmp_path, interrupt):
    job = job_of(shard_mb=SHARD_MB)
    assert interrupt(job, 3) == [0, 1, 2]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"corpus.parts"}
    assert interrupt(job, 2) == [3, 4]
    _, lines = run(job)
    assert "5 of" in lines[0]
    assert files_of(tmp_path / "out") == whole


def test_nothing_is_left_of_a_job_that_has_finished_nothing(job_of, tmp_path, interrupt):
    assert interrupt(job_of(shard_mb=SHARD_MB), 0) == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(append_eod=True), "--append-eod was False and is True"),
        (dict(json_keys=["text"]), r"--json-keys was \['text', 'n'\] and is \['text'\]"),
        (dict(shard_mb=0.02), "--shard-mb was 0.01 and is 0.02"),
        (dict(format="text", json_keys=["text"]), "--format was 'jsonl' and is 'text'"),
    ],
)
def test_an_unfinished_job_with_other_options_is_refused(job_of, interrupt, change, message):
    interrupt(job_of(shard_mb=SHARD_MB), 2)
    with pytest.raises(ValueError, match=message):
        run(job_of(**{"shard_mb": SHARD_MB} | change))


def test_an_unfinished_job_with_other_input_is_refused(job_of, mixed, make_tokenizer, interrupt):
    job = job_of(shard_mb=SHARD_MB)
    interrupt(job, 2)
    other = make_tokenizer(vocab_size=500)
    with pytest.raises(ValueError, match="--tokenizer-model has another content"):
        run(job_of(shard_mb=SHARD_MB, tokenizer=str(other.path)))
    (mixed / "1.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(ValueError, match=r"--input differs, for example .*1\.jsonl.*delete that"):
        run(job)


def test_a_bad_record_keeps_what_is_finished_and_may_be_left_out_then(job_of, whole, tmp_path):
    job = job_of(shard_mb=SHARD_MB, on_error="refuse")
    with pytest.raises(ValueError, match=r"0\.jsonl:41: missing key"):
        run(job)
    parts = tmp_path / "out/corpus.parts"
    finished = len(list(parts.glob("0*[0-9].json")))
    _, lines = run(job_of(shard_mb=SHARD_MB))
    assert (f"{finished} of" in lines[0]) == (finished > 0)
    assert files_of(tmp_path / "out") == whole


def test_line_of_a_bad_record_is_counted_from_the_beginning_of_its_file(job_of, mixed):
    for name in ("0.jsonl", "1.jsonl"):
        (mixed / name).unlink()
    (mixed / "2.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"3\.jsonl:44: missing key"):
        run(job_of(shard_mb=0.002, on_error="refuse"))


def test_two_jobs_for_one_prefix(job_of, whole, tmp_path):
    job, lock = job_of(), tmp_path / "out/corpus.lock"
    lock.parent.mkdir()
    with (
        exclusive(lock, "it"),
        pytest.raises(ValueError, match=f"process {os.getpid()} on .*--mpi"),
    ):
        run(job)
    lock.write_text("process 1 on a host that has died")
    run(job)
    assert files_of(tmp_path / "out") == whole


def test_only_one_of_many_gets_the_lock(tmp_path):
    inside, most, refused = [], [], []

    def enter(number):
        for _ in range(200):
            try:
                with exclusive(tmp_path / "lock", "it"):
                    inside.append(number)
                    most.append(len(inside))
                    inside.remove(number)
            except ValueError:
                refused.append(number)

    threads = [threading.Thread(target=enter, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 800


def wait_for(condition, job, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        if job.poll() is not None:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_killed_at_any_moment_goes_on(job_of, whole, tmp_path, processes):
    job = job_of(shard_mb=0.002)
    parts, kills = tmp_path / "out/corpus.parts", 0
    for wanted in (1, 9, 20):
        started = subprocess.Popen(
            command(job, "--processes", processes),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda n=wanted: len(list(parts.glob("0*[0-9].json"))) >= n, started)
        kills += started.poll() is None
        os.killpg(started.pid, signal.SIGKILL) if started.poll() is None else None
        started.wait()
    assert kills
    done = subprocess.run(command(job), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == whole


@pytest.fixture
def launch():
    """mpirun with two ranks."""
    pytest.importorskip("mpi4py")
    mpirun = shutil.which("mpirun")
    if not mpirun:
        pytest.skip("no mpirun")
    return [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2"]


@pytest.mark.slow
def test_a_rank_killed_on_the_way_costs_its_shard(job_of, whole, tmp_path, launch):
    job, parts = job_of(shard_mb=0.002), tmp_path / "out/corpus.parts"
    started = subprocess.Popen(
        [*launch, *command(job, "--mpi")], stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: len(list(parts.glob("0*[0-9].json"))) >= 9, started)
    ranks = {path.name.split("+")[0].rsplit("-", 1)[1] for path in parts.glob("0*@*")}
    os.kill(int(sorted(ranks)[-1]), signal.SIGKILL)
    assert started.wait() != 0
    finished = len(list(parts.glob("0*[0-9].json")))
    assert finished >= 9
    done = subprocess.run([*launch, *command(job, "--mpi")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{finished} of" in done.stderr
    assert files_of(tmp_path / "out") == whole


def test_ranks_of_mpi_change_no_byte(job_of, whole, tmp_path, launch):
    job = job_of(shard_mb=SHARD_MB)
    done = subprocess.run([*launch, *command(job, "--mpi")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 2 ranks" in done.stderr
    assert done.stdout.count("documents") == 1
    assert files_of(tmp_path / "out") == whole

    refused = subprocess.run(
        [*launch, *command(job_of(on_error="refuse"), "--mpi")], capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert refused.stderr.count("missing key") == 1
