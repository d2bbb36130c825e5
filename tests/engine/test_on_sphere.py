"""The projection inside real training: where it leaves the weights and what it costs."""

import pytest
import torch

from megatron_ngpt.model.spec import parameter_table
from tests.engine.conftest import CASES, STAGES, WORLDS, Case
from tests.engine.training import ODD, embedding_axis

ON_SPHERE = [case for case in CASES if case.kind != "gpt"]
STEPS = 3

pytestmark = pytest.mark.parametrize("world_size", WORLDS)


@pytest.mark.parametrize("case", ON_SPHERE, ids=str)
def test_masters_are_unit_vectors_after_every_step(records, case):
    """Sums of squares, reciprocal root and product round once each in fp32."""
    assert len(records[0].off_sphere) == STEPS
    assert max(records[0].off_sphere) <= 3e-7


@pytest.mark.parametrize("case", [c for c in ON_SPHERE if c.kind == "bf16"], ids=str)
def test_bf16_copies_are_unit_vectors_up_to_their_rounding(records, case):
    """Every component is off by at most 2^-8 of itself, so the length is too."""
    for name, master in records[0].final.items():
        if master.dim() == 2:
            lengths = master.bfloat16().double().norm(dim=embedding_axis(name))
            assert (lengths - 1).abs().max() <= 2**-8


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_all_reduce_a_step_of_one_float_per_vector(records, case, world_size):
    table = parameter_table(ODD).values()
    vectors = sum(spec.shape[1 - spec.norm_dim] for spec in table if spec.norm_dim is not None)
    # one rank alone is DeepSpeed's only where overrides ask for it
    shared = case.kind != "gpt" and case.stage != 0 and (world_size > 1 or case.stage == 3)
    for record in records:
        assert record.reductions == ([vectors] * STEPS if shared else [])


@pytest.mark.parametrize("stage", STAGES)
def test_some_rank_holds_nothing_of_some_parameter(trained, world_size, stage):
    """The cases above are about uneven partitions only if there are such."""
    empty = [rank[Case("ngpt", stage)].empty for rank in trained(world_size)]
    if stage in (1, 2):
        assert (max(empty) > 0) == (world_size > 1)
    elif stage != 0 and world_size == 5:
        assert max(empty) > 0
    else:
        assert stage == 0 or world_size < 5


def test_the_reference_would_leave_the_sphere_without_projection(plain, world_size):
    """What the tolerance is held against: one unprojected step of Adam."""
    record = plain(Case("gpt", 1))
    matrix = record.final["head.weight"]
    assert (matrix.norm(dim=1) - 1).abs().max() > 1e-3
    assert torch.isfinite(matrix).all()
