"""Every ZeRO stage on any number of ranks trains like a plain loop on one process."""

import pytest
import torch

from megatron_ngpt.model.spec import parameter_table
from tests.engine.conftest import CASES, KINDS, STAGES, WORLDS, Case
from tests.engine.training import ODD

EXACT = [case for case in CASES if "bf16" not in case.kind]
BF16 = [case for case in CASES if case.kind == "bf16"]

# another order of summation moves fp32 losses of order 3 by a few units in the last place
LOSS = 1e-6
# Adam divides a gradient by its own size, noise as well where it is all there is; its steps are
# 0.02 long. A large epsilon quietens that
WEIGHT = {"ngpt": 1e-4, "gpt": 1e-4, "clipped": 1e-6, "not clipped": 1e-6}


def furthest(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def weight_difference(ours, theirs):
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


pytestmark = pytest.mark.parametrize("world_size", WORLDS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_initial_weights_are_the_same_to_the_last_bit(records, plain, case):
    expected = plain(case).start
    assert all(torch.equal(records[0].start[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_ranks_tell_the_same(records, case):
    for other in records[1:]:
        assert (other.losses, other.norms) == (records[0].losses, records[0].norms)
        assert weight_difference(other.final, records[0].final) == 0


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_losses_norms_and_weights_equal_the_plain_loop(records, plain, case):
    expected = plain(case)
    assert furthest(records[0].losses, expected.losses) <= LOSS
    assert furthest(records[0].norms, expected.norms) <= LOSS
    assert weight_difference(records[0].final, expected.final) <= WEIGHT[case.kind]
    assert weight_difference(expected.start, expected.final) > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_changes_the_update_and_reports_the_norm_before_it(
    trained, plain, world_size, stage
):
    ranks = trained(world_size)
    clipped, free = (ranks[0][Case(kind, stage)] for kind in ("clipped", "not clipped"))
    assert clipped.norms[0] == pytest.approx(free.norms[0], abs=LOSS)
    assert clipped.norms[0] > 4 * KINDS["clipped"]["grad_clip"]
    assert weight_difference(clipped.final, free.final) > 1000 * WEIGHT["clipped"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_model_holds_its_masters_rounded_to_its_dtype(records, case):
    assert [record.stale for record in records] == [[]] * len(records)


@pytest.mark.parametrize("case", BF16, ids=str)
def test_bf16_stays_near_fp32(records, plain, case):
    """A bf16 value is off by up to 2^-8 of itself; losses are means over 960 tokens."""
    expected = plain(case)
    assert furthest(records[0].losses, expected.losses) <= 2e-3
    assert furthest(records[0].norms, expected.norms) <= 0.03 * max(expected.norms)
    assert furthest(records[0].losses, expected.losses) > LOSS


@pytest.mark.parametrize("accumulation", [1, 2])
def test_bf16_stages_stay_near_each_other(trained, world_size, accumulation):
    ranks = trained(world_size)
    runs = [ranks[0][Case("bf16", stage, accumulation)] for stage in STAGES]
    for run in runs[1:]:
        assert furthest(run.losses, runs[0].losses) <= 1e-3
        assert furthest(run.norms, runs[0].norms) <= 0.02 * max(runs[0].norms)


@pytest.mark.parametrize("case", BF16, ids=str)
def test_only_matrices_are_ever_bf16(records, case):
    copies = case.stage in (1, 2)
    for name, dtype in records[0].dtypes.items():
        vector = parameter_table(ODD)[name].keeps_fp32
        assert dtype == (torch.bfloat16 if copies and not vector else torch.float32), name


@pytest.mark.parametrize("stage", STAGES)
def test_scales_take_steps_far_below_bf16_resolution(trained, world_size, stage):
    """Adam's first steps are lr long whatever the gradient; 3e-5 is 2^-8 of nothing near 0.4."""
    record = trained(world_size)[0][Case("bf16, tiny steps", stage)]
    for name, value in record.final.items():
        if value.dim() == 1:
            moved = (value - record.start[name]).abs()
            assert 0.5e-5 < moved.median() <= 3.1e-5, name
