"""What a batch script is told to do, whatever its launcher's exit code was."""

import os
import time

import pytest

from megatron_ngpt.data.preprocess import preprocess
from megatron_ngpt.data.preprocess.requeue import REFUSED, decide

BATCH = "12"


@pytest.fixture
def job(job_of):
    return job_of(shard_mb=0.01)


def make(job):
    preprocess(job, report=lambda line: None)


def asked(job, exit_code=0, tries=3, batch=BATCH):
    decision = decide(job, batch, exit_code, tries)
    return decision.action, decision.why


def leave_shards(job, shards):
    """The folder of a job that was killed after so many shards."""
    folder = job.output_prefix + ".parts"
    os.makedirs(folder, exist_ok=True)
    for name in ("job", *(f"{number:06d}" for number in range(shards))):
        with open(f"{folder}/{name}.json", "w") as file:
            file.write("{}")


def test_done_when_all_pairs_are_there(job):
    make(job)
    for exit_code in (0, 143):
        action, why = asked(job, exit_code)
        assert action == "done"
        assert "corpus_text_document" in why
        assert "corpus_n_document" in why


def test_an_exit_code_of_0_without_pairs_counts_as_failed_until_the_tries_are_over(job, tmp_path):
    told = [asked(job) for _ in range(3)]
    assert [action for action, _ in told] == ["requeue", "requeue", "give up"]
    assert "corpus_text_document.manifest.json is not there" in told[0][1]
    assert told[-1][1].startswith("3 attempts in a row finished no shard")
    assert asked(job)[0] == "requeue", "a job that is submitted again begins to count anew"
    make(job)
    assert asked(job)[0] == "done"
    assert not list(tmp_path.glob("out/*.tries"))


def test_each_finished_shard_is_worth_another_attempt(job):
    for shards in (1, 2, 2, 3, 3, 3):
        leave_shards(job, shards)
        action, why = asked(job, exit_code=143, tries=3)
        assert action == "requeue"
        assert f"{shards} shards are finished in " in why
    assert asked(job, exit_code=143, tries=3)[0] == "give up"
    assert asked(job, exit_code=143, tries=3, batch="13")[0] == "requeue"


def test_what_was_refused_is_not_tried_again(job, job_of):
    assert asked(job, exit_code=REFUSED)[0] == "give up"
    assert asked(job_of(inputs=["no/such.jsonl"]))[1] == "--input 'no/such.jsonl': no such file"


def test_pairs_that_are_not_of_this_job_are_not_its_result(job, job_of, mixed, tmp_path):
    make(job)
    assert "of a job with other options" in asked(job_of(append_eod=True))[1]
    assert "of a job with other sources" in asked(job_of(inputs=[str(mixed / "0.jsonl")]))[1]
    later = time.time() + 60
    os.utime(mixed / "0.jsonl", (later, later))
    assert asked(job)[1].endswith("was changed after " + job.prefix("text") + " was made")


def test_a_pair_that_is_not_whole_is_made_again(job, tmp_path):
    make(job)
    pair = tmp_path / "out" / "corpus_n_document.bin"
    pair.write_bytes(pair.read_bytes()[:-2])
    action, why = asked(job)
    assert action == "requeue"
    assert str(pair.with_suffix("")) in why
    pair.unlink()
    assert "no such file" in asked(job)[1]
