import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.model.initial import BLOCK, initial_box, initial_values, initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import ParameterSpec, parameter_table

SMALL = ParameterSpec("blocks.0.mlp.up.weight", (7, 11), 1, 0, "matrix", std=0.3)
FIRST = [-0.0960787, 0.3445964, 0.0432914, 0.1721809]
LARGE = replace(SMALL, shape=(1025, 2049))  # two block boundaries, both inside a row


@given(cut=st.tuples(st.integers(0, 77), st.integers(0, 77)).map(sorted))
def test_a_piece_is_a_slice_of_the_whole(cut):
    whole = initial_values(SMALL, 5, 0, 77)
    assert torch.equal(initial_values(SMALL, 5, *cut), whole[slice(*cut)])


def test_pieces_across_block_boundaries_are_slices_of_the_whole():
    size = 1025 * 2049
    assert size > 2 * BLOCK
    whole = initial_values(LARGE, 5, 0, size)
    marks = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 17, size - 1, size]
    for start, stop in itertools.combinations_with_replacement(marks, 2):
        assert torch.equal(initial_values(LARGE, 5, start, stop), whole[start:stop])


@settings(deadline=None)
@given(st.data())
def test_a_box_is_cut_from_the_whole(data):
    whole = initial_values(SMALL, 5, 0, 77).view(7, 11)
    top, left = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 10))
    rows, columns = data.draw(st.integers(1, 7 - top)), data.draw(st.integers(1, 11 - left))
    found = initial_box(SMALL, 5, (top, left), (rows, columns))
    assert torch.equal(found, whole[top : top + rows, left : left + columns])


def test_a_box_across_a_block_boundary_is_cut_from_the_whole():
    whole = initial_values(LARGE, 5, 0, 1025 * 2049).view(1025, 2049)
    for box in [(511, 1500, 1, 549), (510, 0, 3, 2049), (500, 100, 30, 1900), (1024, 2048, 1, 1)]:
        top, left, rows, columns = box
        found = initial_box(LARGE, 5, box[:2], box[2:])
        assert torch.equal(found, whole[top : top + rows, left : left + columns])


def test_a_vector_is_its_constant():
    spec = ParameterSpec("s_z.value", (9,), None, 0, "vector", constant=0.25)
    assert initial_box(spec, 5, (2,), (3,)).tolist() == [0.25] * 3


def test_seed_name_and_block_decide_the_values():
    values = initial_values(LARGE, 5, 0, 2 * BLOCK)
    other_seed = initial_values(LARGE, 6, 0, BLOCK)
    other_name = initial_values(replace(LARGE, name="blocks.1.mlp.up.weight"), 5, 0, BLOCK)
    blocks = [values[:BLOCK], values[BLOCK:], other_seed, other_name]
    for one, two in itertools.combinations(blocks, 2):
        # independent draws correlate by about 1/sqrt(2^20)
        assert abs(torch.corrcoef(torch.stack((one, two)))[0, 1]) < 5 / BLOCK**0.5
    assert torch.equal(values, initial_values(LARGE, 5, 0, 2 * BLOCK))


def test_values_are_normal_with_the_table_s_deviation():
    values = initial_values(LARGE, 5, 0, BLOCK) / LARGE.std
    error = BLOCK**-0.5
    assert abs(values.mean()) < 5 * error
    assert abs(values.std() - 1) < 5 * error
    assert abs((values.abs() < 1).float().mean() - 0.6827) < 5 * error


@pytest.mark.parametrize("threads", [1, 2])
def test_values_do_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = initial_values(LARGE, 5, 0, 4)
    finally:
        torch.set_num_threads(before)
    # written down once, so that checkpoints and runs of every version start alike
    assert found.tolist() == pytest.approx(FIRST, abs=1e-6)


def test_whole_model_starts_on_the_sphere(config):
    model, table = NGPT(config), parameter_table(config)
    initialise(model, table, seed=3)
    for name, parameter in model.named_parameters():
        spec = table[name]
        if spec.norm_dim is not None:
            norms = parameter.double().norm(dim=spec.norm_dim)
            assert (norms - 1).abs().max() <= 2e-7, name
        elif spec.values:
            assert parameter.tolist() == pytest.approx(spec.values)
        elif spec.std and parameter.numel() < 100:  # too few for their deviation to be told
            assert 0 < parameter.abs().max() < 5 * spec.std, name
        elif spec.std:
            assert parameter.std().item() == pytest.approx(spec.std, rel=0.2), name
        else:
            assert parameter.tolist() == pytest.approx([spec.constant] * parameter.numel())
