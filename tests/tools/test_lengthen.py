"""What lengthen.sh submits: stages that depend on each other, each a run that is possible."""

import os
import subprocess

import pytest

from megatron_ngpt.config import load_config
from megatron_ngpt.estimate.dry_run import dry_run
from tests.jobs import REPOSITORY

SBATCH = """#!/bin/bash
printf '%s\\n' "$@" END >> "$SUBMITTED"
echo "$((100 + $(grep -c ^END$ "$SUBMITTED")));cluster"
"""


@pytest.fixture
def submitted(tmp_path):
    """Run the script with an sbatch that only writes down its words."""
    sbatch, log, site = (tmp_path / name for name in ("sbatch", "submitted", "site.sh"))
    sbatch.write_text(SBATCH)
    sbatch.chmod(0o755)
    site.write_text(f"export PATH={tmp_path}:$PATH\n")

    def run(*words):
        script = [REPOSITORY / "examples/slurm/lengthen.sh", *words]
        environment = {**os.environ, "NGPT_SITE": str(site), "SUBMITTED": str(log)}
        done = subprocess.run(
            script, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        jobs = log.read_text().split("END\n")[:-1] if log.exists() else []
        return [job.splitlines() for job in jobs], done.stdout

    return run


def parts(job):
    """Options of sbatch, and what follows the script."""
    at = job.index("examples/slurm/pretrain.sbatch")
    return job[:at], job[at + 1 :]


def test_the_presets_follow_each_other(submitted):
    jobs, told = submitted("--time=8:00:00", "runs/long", "--data.train", "books")
    names = ["ngpt_1b_8k", "ngpt_1b_32k", "ngpt_1b_128k"]
    options, words = zip(*map(parts, jobs), strict=True)
    depend = [[o for o in own if o.startswith("--dependency")] for own in options]
    assert depend == [[], ["--dependency=afterok:101"], ["--dependency=afterok:102"]]
    for own in options:
        assert {"--nodes=8", "--time=8:00:00", "--kill-on-invalid-dep=yes"} <= set(own)
    assert [own[0] for own in words] == [f"runs/long/{name}" for name in names]
    assert [line.split()[0] for line in told.splitlines()] == ["101", "102", "103"]


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_every_stage_is_a_possible_run_that_goes_on_from_the_one_before(submitted, nodes):
    """At 8, 64 and 512 GPUs, with what docs/long_context.md says they need."""
    one = ["--parallel.cp", "8", "--parallel.ulysses", "4"]
    more = {1: one, 8: [], 64: ["--train.global_batch", "512"]}[nodes]
    files = [f"examples/configs/ngpt_1b_{name}.yaml" for name in ("8k", "32k", "128k", "1m")]
    jobs, _ = submitted("runs/long", *(f"{file}:{nodes}" for file in files), *more)
    configs = [load_config(*_config_words(parts(job)[1])) for job in jobs]
    assert len(configs) == 4
    for config in configs:
        assert f"{8 * nodes} ranks" in dry_run(config, 8 * nodes)
        assert config.checkpoint.dir == "runs/long/checkpoints"
    assert sorted({c.train.steps for c in configs}) == [c.train.steps for c in configs]
    assert [c.data.seq_len for c in configs] == [8192, 32768, 131072, 1048576]


def _config_words(words):
    """Of pretrain_ngpt.py: the file, and what overrides it."""
    assert words[1] == "--config"
    return words[2:]


def test_a_dry_run_submits_nothing_and_tells_each_stage(submitted):
    jobs, told = submitted("runs/long", "examples/configs/ngpt_1b_32k.yaml:1", "--dry_run")
    assert jobs == []
    assert told.splitlines()[0] == "== ngpt_1b_32k on 1 nodes"
    assert "8 ranks = pp 1 x dp 4 x cp 2 x tp 1" in told
