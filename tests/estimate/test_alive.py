"""Micro-batches alive, against the action lists of torch's schedules themselves."""

from collections import Counter

import pytest
import torch

from megatron_ngpt.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from megatron_ngpt.estimate.alive import alive
from megatron_ngpt.estimate.dry_run import fake_mesh
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.parallel.apply import build_parts
from megatron_ngpt.parallel.pipeline import Pipeline
from megatron_ngpt.parallel.stages import stage_map

CASES = [
    (schedule, pp, stages, micro_batches)
    for schedule, many in (("1f1b", (1,)), ("interleaved", (2, 3)), ("zero_bubble", (2, 3)))
    for stages in many
    for pp in (2, 3, 4)
    for micro_batches in (pp, pp + pp // 2, 2 * pp, 5 * pp)
    if micro_batches % max(1, micro_batches // pp) == 0
] + [("zbv", pp, 2, count) for pp in (2, 3, 4) for count in (2 * pp, 2 * pp + 1, 5 * pp)]


def actions(config: Config) -> dict[int, list]:
    """What each pipeline rank does, in order."""
    pp = config.parallel.pp
    with fake_mesh(Degrees(pp=pp, dp=1, cp=1, tp=1), 0) as mesh:
        stages = stage_map(config)
        parts = [stages.parts[number] for number in stages.of_rank(0)]
        built = build_parts(config, mesh, parts, torch.float32, sdpa_attention)
        schedule = Pipeline(config, mesh, stages, built).schedule
    order = getattr(schedule, "pipeline_order", None) or schedule._get_pipeline_order()
    return {rank: [action for action in of_rank if action] for rank, of_rank in order.items()}


def worst(counts) -> set[tuple[int, ...]]:
    """Those of which no other is at least as large in every stage."""
    unique = set(counts)
    return {
        one
        for one in unique
        if not any(o != one and all(a >= b for a, b in zip(o, one, strict=True)) for o in unique)
    }


@pytest.mark.parametrize(("schedule", "pp", "stages", "micro_batches"), CASES)
def test_as_torch_schedules_them(schedule, pp, stages, micro_batches):
    parallel = ParallelConfig(pp=pp, schedule=schedule, stages_per_rank=stages)
    config = Config(
        model=ModelConfig(width=8, layers=pp * stages, heads=2, vocab_size=16),
        parallel=parallel,
        data=DataConfig(seq_len=4),
        train=TrainConfig(global_batch=micro_batches, micro_batch=1),
    )
    for rank, of_rank in actions(config).items():
        mine = stage_map(config).of_rank(rank)
        held, seen = Counter(), []
        for action in of_rank:
            if action.computation_type.name == "FORWARD":
                held[action.stage_index] += 1
                seen.append(tuple(held[stage] for stage in mine))
            elif action.computation_type.name in ("FULL_BACKWARD", "BACKWARD_WEIGHT"):
                held[action.stage_index] -= 1
        assert worst(alive(parallel, micro_batches, rank)) == worst(seen), rank
        assert not +held  # everything is let go in the end
