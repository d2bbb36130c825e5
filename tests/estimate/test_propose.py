"""Proposals: every one can run and fits, and they are in order."""

from dataclasses import replace

import pytest

from megatron_ngpt.config import Config, DataConfig, ModelConfig, TrainConfig, check
from megatron_ngpt.estimate.propose import Machine, Proposal, propose, step_flops
from megatron_ngpt.estimate.table import GIB
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.parallel.plan import check_topology

LARGE = Config(
    model=ModelConfig(
        width=4096, layers=32, heads=32, kv_heads=8, ffn_width=14336, vocab_size=131072
    ),
    data=DataConfig(seq_len=8192),
    train=TrainConfig(global_batch=512, micro_batch=2, dtype="bf16"),
)
SMALL = replace(LARGE, model=ModelConfig(width=512, layers=8, heads=8), data=DataConfig())


def machine(gpus: int, gib: float, **rates) -> Machine:
    return Machine(gpus=gpus, usable=gib * GIB, **rates)


@pytest.mark.parametrize(("gpus", "gib"), [(8, 72), (24, 72), (64, 36)])
def test_everything_proposed_can_run_and_fits(gpus, gib):
    found = propose(LARGE, machine(gpus, gib)).fitting
    assert found
    for proposal in found:
        check(proposal.config)
        check_topology(proposal.config, proposal.degrees)
        degrees = proposal.degrees
        assert degrees.pp * degrees.dp * degrees.tp == gpus
        assert degrees.tp <= 8
        assert proposal.memory.total <= gib * GIB
        assert proposal.config.train.micro_batch <= 2
    lost = [proposal.lost(machine(gpus, gib)) for proposal in found]
    assert lost == sorted(lost)


def test_what_fits_on_one_gpu_is_data_parallel():
    choice = propose(SMALL, machine(16, 72))
    first = choice.fitting[0]
    assert (first.degrees.dp, first.degrees.tp, first.degrees.pp) == (16, 1, 1)
    assert not first.config.train.recompute


def test_what_does_not_is_sharded_first_inside_a_node():
    first = propose(LARGE, machine(64, 72)).fitting[0]
    assert first.degrees.tp > 1
    assert not first.config.train.recompute


def test_slow_links_inside_a_node_make_tensor_parallelism_the_last_resort():
    fast = propose(LARGE, machine(64, 72)).fitting[0]
    slow = propose(LARGE, machine(64, 72, inside=5e9)).fitting[0]
    assert slow.degrees.tp < fast.degrees.tp


def test_recomputation_when_nothing_else_helps():
    found = propose(LARGE, machine(8, 24)).fitting
    assert all(proposal.config.train.recompute for proposal in found)


def test_nothing_fits():
    choice = propose(LARGE, machine(4, 8))
    assert choice.fitting == []
    assert choice.too_large


def test_a_batch_that_no_topology_divides():
    odd = replace(LARGE, train=replace(LARGE.train, global_batch=1))
    assert all(p.degrees.dp == 1 for p in propose(odd, machine(7, 1e6)).fitting)


def test_the_better_ones_that_are_too_large_are_told():
    weighed = machine(64, 72)
    choice = propose(LARGE, weighed)
    assert choice.too_large
    for proposal in choice.too_large:
        assert proposal.memory.total > weighed.usable
        assert proposal.lost(weighed) < choice.fitting[0].lost(weighed)


def test_idle_share():
    """1F1B with 4 equal stages and 8 micro-batches works 8 of 11 slots; the rest is imbalance."""
    even = replace(SMALL, model=replace(SMALL.model, vocab_size=2))
    for schedule, stages, share in (("1f1b", 1, 3 / 11), ("interleaved", 2, 3 / 19)):
        parallel = replace(even.parallel, pp=4, schedule=schedule, stages_per_rank=stages)
        config = replace(
            even, parallel=parallel, train=replace(even.train, global_batch=8, micro_batch=1)
        )
        idle = Proposal(config, Degrees(pp=4, dp=1, cp=1, tp=1)).idle
        assert idle == pytest.approx(share, abs=1e-3), schedule
    assert Proposal(SMALL, Degrees(pp=1, dp=1, cp=1, tp=1)).idle == 0


def test_flops_of_a_step():
    """Six per element of every matrix but the embedding, and the lower half of attention."""
    model = ModelConfig(width=8, layers=2, heads=2, vocab_size=10)
    config = Config(
        model=model,
        data=DataConfig(seq_len=5),
        train=TrainConfig(global_batch=3, micro_batch=1),
    )
    matrices = 2 * (4 * 8 * 8 + 3 * 8 * 32) + 10 * 8
    attention = 2 * 5 * 8  # q k^T and its product with v, 2 T D multiplications each, halved
    assert step_flops(config) == 6 * (matrices + attention) * 15
