"""lengthen.sh on a real SLURM: the second length begins where the first ended."""

import pytest
import yaml

from megatron_ngpt.run.attempts import read_attempts
from tests.jobs import metrics
from tests.slurm.cluster import wait_for

SHORT = {"data": {"seq_len": 16}, "train": {"steps": 4}}
LONG = {
    "data": {"seq_len": 32},
    "train": {"steps": 6},
    "parallel": {"cp": 2, "ulysses": 1},
    "model": {"rope_scaling": "yarn", "rope_factor": 2, "rope_original": 16},
}


@pytest.mark.slow
def test_the_longer_stage_waits_and_goes_on_from_the_shorter_one(pretraining, tmp_path):
    run = pretraining(checkpoint={"every": 2})
    files = {name: tmp_path / f"{name}.yaml" for name in ("short", "long")}
    for name, settings in (("short", SHORT), ("long", LONG)):
        files[name].write_text(yaml.safe_dump(settings))
    stages = [f"{files['short']}:1", f"{files['long']}:2"]
    settings = _without(run.words, "--data.seq_len", "--train.steps")
    told = run._here(
        "examples/slurm/lengthen.sh", *run._options, str(run.folder), *stages, *settings
    )
    jobs = [line.split()[0] for line in told.splitlines()]
    assert told.splitlines()[1].endswith(f"--dependency=afterok:{jobs[0]}")
    for job in jobs:
        run.job = job
        wait_for(run.ended, 240, f"the end of job {job}\n{run}")
        assert run.facts()["JobState"] == "COMPLETED", run
    assert [record["step"] for record in metrics(run.folder / "short")] == [1, 2, 3, 4]
    longer = metrics(run.folder / "long")
    assert [(r["step"], r["tokens"]) for r in longer] == [(5, 1152), (6, 1536)]
    (attempt,) = read_attempts(run.folder / "long")
    assert (attempt.resumed_at, attempt.ranks, attempt.reason) == (4, 2, "done")


def _without(words, *names):
    """The command line less some options and their values."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for name, value in pairs if name not in names for word in (name, value)]
