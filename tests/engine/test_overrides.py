"""engine.deepspeed_overrides that DeepSpeed would pass over or choke on."""

import json

from megatron_ngpt.config import parse_config
from megatron_ngpt.engine.engine import Engine
from tests.distributed import run
from tests.jobs import words

KNOWN = {
    "wall_clock_breakdown": False,
    "flops_profiler": {"enabled": False, "top_modules": 3},
    "activation_checkpointing": {"partition_activations": False},
    "comms_logger": {"enabled": False},
    "zero_optimization": {"overlap_comm": False},
    "checkpoint": {"tag_validation": "Warn"},
    "aio": {"thread_count": 1},
}
CASES = [
    (
        {"wall_clock_breakdwon": True},
        "no wall_clock_breakdwon (did you mean wall_clock_breakdown?)",
    ),
    ({"overlap_comm": True}, "no overlap_comm: remove or correct"),
    ({"zero_optimization": {"overlap_com": True}}, "ValidationError: 1 validation error"),
    ({"seed": 3, "reduce_bucket_size": 4}, "no seed, reduce_bucket_size: remove"),
]


def _built(mesh, folder) -> list[str]:
    """What each file leads to: "" or the refusal."""
    told = []
    for mine in (KNOWN, *(mine for mine, _ in CASES)):
        path = folder / "overrides.json"
        path.write_text(json.dumps(mine))
        config = parse_config(words("", folder, engine={"deepspeed_overrides": path}))
        try:
            Engine(config, mesh).close()
            told.append("")
        except ValueError as err:
            told.append(str(err))
    return told


def test_keys_nobody_asks_for_are_refused(tmp_path):
    ((good, *bad),) = run(1, _built, tmp_path)
    assert good == ""
    for told, (_, message) in zip(bad, CASES, strict=True):
        assert told.startswith("engine.deepspeed_overrides = ")
        assert message in told
        assert "\n" not in told
