"""tools/verify_golden.py accepts the same traces under tensor and pipeline parallelism."""

import json

import pytest
from safetensors.torch import load_file

from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.interop import golden
from megatron_ngpt.mesh.degrees import Degrees
from tests.distributed import run
from tests.parallel.training import build
from tests.schedules import SCHEDULES
from tests.tools import test_verify_golden

trace = test_verify_golden.trace
# of the trace made here, which has one layer; the second stage has the head alone
SMALL = {
    2: [({"tp": 2}, 1), ({"tp": 2}, 3), ({"pp": 2}, 1)],
    4: [({"tp": 2, "pp": 2}, 0), ({"tp": 2}, 3), ({"pp": 2}, 1)],
}
PUBLISHED = {
    2: [({"tp": 2}, 1), *(({"pp": 2, "schedule": schedule}, 1) for schedule in SCHEDULES)],
    4: [
        *(({"tp": 2, "pp": 2, "schedule": schedule}, 1) for schedule in SCHEDULES),
        *(({"tp": 2}, stage) for stage in (1, 3)),
        ({"tp": 4}, 2),
    ],
}


def _replay(mesh, tensors, facts, topologies):
    """Per topology: what the tool finds, and its exit code."""
    found = []
    for parallel, stage in topologies:
        layout = ParallelConfig(**parallel)
        dp = Degrees.of(layout, mesh.degrees.dp).dp
        config = golden._config(facts, tensors["tokens"], stage, layout, dp)
        engine: Engine = build(mesh, config)
        distances = golden.replay(engine, tensors, facts["steps"])
        limits = golden.TOLERANCES[config.model.architecture]
        found.append((distances, golden._report(distances, limits, mesh.rank)))
        engine.deepspeed.destroy()
    return found


def check(ranks, tensors, facts, topologies):
    for told in run(ranks, _replay, tensors, facts, topologies, timeout=900):
        for topology, (distances, code) in zip(topologies, told, strict=True):
            assert code == 0, (topology, distances)


@pytest.mark.parametrize("ranks", SMALL)
def test_small_trace(trace, ranks):
    check(ranks, *trace, SMALL[ranks])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ngpt_train", "gpt_train"])
@pytest.mark.parametrize("ranks", PUBLISHED)
def test_published_trace(shared, name, ranks):
    path = shared / "golden" / f"{name}.safetensors"
    facts = json.loads(path.with_suffix(".json").read_text())
    check(ranks, load_file(path), facts, PUBLISHED[ranks])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (2, ["--tp", 2]),
        (2, ["--pp", 2, "--schedule", "zero_bubble"]),
        (4, ["--tp", 2, "--pp", 2]),
        (4, ["--tp", 2, "--zero_stage", 3]),
    ],
)
def test_published_trace_under_torchrun(shared, ranks, words):
    path = shared / "golden" / "ngpt_train.safetensors"
    done = test_verify_golden.tool(path, *words, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok") == 5
