from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.mesh.degrees import AXES, Degrees

small = st.integers(1, 4)


@given(tp=small, pp=small, cp=small, dp=small)
def test_dp_is_what_is_left(tp, pp, cp, dp):
    found = Degrees.of(ParallelConfig(tp=tp, pp=pp, cp=cp), tp * pp * cp * dp)
    assert found == Degrees(pp=pp, dp=dp, cp=cp, tp=tp, ulysses=cp)


@given(tp=small, pp=small, cp=small, dp=small)
def test_coordinates_number_the_mesh_in_the_order_of_its_axes(tp, pp, cp, dp):
    """The same numbering as a row-major array of ranks, which is what DeviceMesh makes."""
    degrees = Degrees(pp=pp, dp=dp, cp=cp, tp=tp)
    places = [
        tuple(degrees.coordinates(rank)[a] for a in AXES) for rank in range(tp * pp * cp * dp)
    ]
    assert places == list(product(*(range(d) for d in degrees.shape)))


def test_tp_is_innermost_and_pp_outermost():
    degrees = Degrees(pp=2, dp=2, cp=2, tp=2)
    assert degrees.coordinates(1) == {"pp": 0, "dp": 0, "cp": 0, "tp": 1}
    assert degrees.coordinates(8) == {"pp": 1, "dp": 0, "cp": 0, "tp": 0}


def test_a_ring_is_what_ulysses_leaves_of_cp():
    found = Degrees.of(ParallelConfig(cp=8, ulysses=2), 16)
    assert (found.ring, found.replicas) == (4, 16)


def test_processes_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match=r"6 processes .* 2 \* 2 \* 1 = 4: start a multiple of 4"):
        Degrees.of(ParallelConfig(tp=2, pp=2), 6)
