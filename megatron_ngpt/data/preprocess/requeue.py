"""Whether a batch job of preprocessing shall start again, from what it left; reads no text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.pairs.manifest import manifest_path, read_manifest, write_json
from megatron_ngpt.data.preprocess.job import PreprocessJob
from megatron_ngpt.data.preprocess.merge import origin
from megatron_ngpt.data.preprocess.parts import Parts
from megatron_ngpt.data.sources import Source, find_sources
from megatron_ngpt.data.sources.readers import ENDINGS
from megatron_ngpt.decision import Decision

REFUSED = 2
"""Exit code of a job that would be refused again."""


def decide(job: PreprocessJob, batch: str, exit_code: int, tries: int) -> Decision:
    """What a batch script does next; the pairs count, not what the launcher says.

    srun of SLURM 22.05 ends with 0 also when it never started the processes.

    Args:
        job: what was to be made.
        batch: number of the scheduler's job, the same over its restarts.
        exit_code: of the launcher.
        tries: attempts in a row that finish no shard after which to give up.
    """
    record = Path(f"{job.output_prefix}.tries")
    try:
        problem = unmade(job)
    except (ValueError, OSError, ModuleNotFoundError) as err:
        return Decision("give up", str(err))
    if not problem:
        record.unlink(missing_ok=True)
        return Decision("done", ", ".join(job.prefix(key) for key in job.json_keys))
    problem = f"exit code {exit_code}, {problem}"
    if exit_code == REFUSED:
        return Decision("give up", f"refused, which to start again does not change: {problem}")
    failed = _count(record, batch, Parts.of(job.output_prefix).finished)
    if failed >= tries:
        record.unlink()
        return Decision("give up", f"{failed} attempts in a row finished no shard, now: {problem}")
    return Decision("requeue", problem)


def unmade(job: PreprocessJob) -> str:
    """Why the pairs of a job are not there yet, or "" when all are, whole and made of its input.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as the job itself would.
    """
    job.check()
    sources = find_sources(job.inputs, ENDINGS[job.format])
    parts = Parts.of(job.output_prefix)
    if parts.begun:
        return f"{parts.finished} shards are finished in {parts.folder}"
    return next(filter(None, (_unmade_pair(job, key, sources) for key in job.json_keys)), "")


def _unmade_pair(job: PreprocessJob, key: str, sources: Sequence[Source]) -> str:
    prefix = job.prefix(key)
    found = read_manifest(prefix)
    if found is None:
        return f"{manifest_path(prefix)} is not there"
    for name, value in json.loads(json.dumps(origin(job, key, sources))).items():
        if found.get(name) != value:
            return f"{manifest_path(prefix)} is of a job with other {name}"
    made = manifest_path(prefix).stat().st_mtime_ns
    if changed := [source.path for source in sources if source.modified > made]:
        return f"{changed[0]} was changed after {prefix} was made"
    try:
        pair = IndexedDataset(prefix)
    except (FileNotFoundError, ValueError) as err:
        return str(err)
    same = (pair.document_count, pair.token_count) == (found["documents"], found["tokens"])
    return "" if same else f"{prefix} holds other counts than its manifest"


def _count(record: Path, batch: str, finished: int) -> int:
    """How many attempts of this batch job in a row, this one included, finished no shard."""
    before = json.loads(record.read_text()) if record.exists() else {}
    if before.get("job") != batch:
        before = {"finished": 0, "failed": 0}
    failed = 0 if finished > before["finished"] else before["failed"] + 1
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, {"job": batch, "finished": finished, "failed": failed})
    return failed
