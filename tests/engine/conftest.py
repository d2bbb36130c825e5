"""Many small runs, all of a world size in one launch, shared by the tests of this room."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest

from megatron_ngpt.config import Config
from tests.distributed import run
from tests.engine.training import (
    ODD_GPT,
    Record,
    config_of,
    some_tokens,
    train_each,
    train_plainly,
    write_overrides,
)

SEQUENCES = 120  # divides over 1 to 5 ranks with 1 or 2 micro-batches each
TOKENS = some_tokens(3, SEQUENCES)
WORLDS = [1, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4, 5))]
KINDS = {
    "ngpt": {"schedule": "linear"},
    "gpt": {"model": ODD_GPT, "weight_decay": 0.1, "schedule": "cosine"},
    # a large epsilon makes Adam's update depend on the gradient's length
    "clipped": {"grad_clip": 0.02, "eps": 0.1},
    "not clipped": {"grad_clip": 0.0, "eps": 0.1},
    "bf16": {"dtype": "bf16"},
    "bf16, tiny steps": {"dtype": "bf16", "lr": 1e-5},
}
# small parameters stay gathered at stage 3 unless told otherwise; large ones never do
STAGES = (0, 1, 2, 3, "3 gathered")


class Case(NamedTuple):
    """One run: which settings, which stage, how many micro-batches a step."""

    kind: str
    stage: int | str
    accumulation: int = 1


CASES = [Case(kind, stage) for kind in KINDS for stage in STAGES]
CASES += [Case(kind, stage, 2) for kind in ("ngpt", "gpt", "bf16") for stage in STAGES]


@pytest.fixture(scope="session")
def partitioned(tmp_path_factory) -> str:
    """Overrides that let stage 3 partition even the smallest parameter between its uses."""
    return write_overrides(tmp_path_factory.mktemp("zero3"), stage3_param_persistence_threshold=0)


@pytest.fixture(scope="session")
def settings(partitioned) -> Callable[[Case, int], Config]:
    """The configuration of a case on that many ranks."""

    def make(case: Case, world_size: int) -> Config:
        return config_of(
            stage=int(str(case.stage)[0]),
            batch=(SEQUENCES, SEQUENCES // world_size // case.accumulation),
            overrides=partitioned if case.stage == 3 else "",
            **KINDS[case.kind],
        )

    return make


@pytest.fixture(scope="session")
def trained(settings) -> Callable[[int], list[dict[Case, Record]]]:
    """Records of all cases on every rank of a world size."""

    @functools.cache
    def train(world_size: int) -> list[dict[Case, Record]]:
        configs = {case: settings(case, world_size) for case in CASES}
        return run(world_size, train_each, configs, TOKENS)

    return train


@pytest.fixture(scope="session")
def plain(settings) -> Callable[[Case], Record]:
    """The same case on one process without DeepSpeed, in fp32."""

    @functools.cache
    def train(kind: str) -> Record:
        return train_plainly(settings(Case(kind, 1), 1), TOKENS)

    return lambda case: train(case.kind)


@pytest.fixture
def records(trained, case, world_size) -> list[Record]:
    """Records of a case on every rank."""
    return [rank[case] for rank in trained(world_size)]
