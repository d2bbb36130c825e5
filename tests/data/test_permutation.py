import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.data.permutation import Permutation

LARGE = 10**6


@pytest.mark.parametrize("key", [(0, 0), (1234, 7)])
def test_every_index_once_for_every_small_size(key):
    for size in [*range(1, 301), 1000, 1023, 1024, 1025, 65537]:
        images = Permutation(size, key)(np.arange(size))
        assert images.dtype == np.int64
        assert np.array_equal(np.sort(images), np.arange(size)), size


@given(size=st.integers(1, 2**62), key=st.tuples(st.integers(0, 2**64), st.integers(0)))
def test_inverse_brings_every_index_of_a_huge_range_back(size, key):
    permutation = Permutation(size, key)
    indices = np.linspace(0, size - 1, 50).astype(np.int64).clip(0, size - 1)
    images = permutation(indices)
    assert images.min() >= 0
    assert images.max() < size
    assert np.array_equal(permutation.inverse(images), indices)


def test_many_sizes_at_once_are_permuted_each_by_its_own_key():
    sizes = np.array([1, 2, 7, 1000, 10**12, 7, 2**62])
    keys = [(3, row) for row in range(len(sizes))]
    indices = sizes - 1
    expected = [
        int(Permutation(int(size), key)(index))
        for size, key, index in zip(sizes, keys, indices, strict=True)
    ]
    permutation = Permutation(sizes, keys)
    assert permutation(indices).tolist() == expected
    assert np.array_equal(permutation.inverse(permutation(indices)), indices)
    assert Permutation(sizes[:0], [])(sizes[:0]).shape == (0,)


def test_a_trillion_indices_are_spread_evenly():
    size = 10**12
    images = Permutation(size, (5, 0))(np.arange(LARGE))  # neighbours, the hardest input
    assert len(np.unique(images)) == LARGE
    counts = np.histogram(images, bins=100, range=(0, size))[0]
    # Each bin holds 10,000 on average with a standard deviation of 100; five of those.
    assert abs(counts - LARGE / 100).max() < 500


def test_shape_is_kept_and_one_index_is_enough():
    permutation = Permutation(1000, (1, 2))
    table = permutation(np.arange(1000))
    assert np.array_equal(permutation(np.arange(1000).reshape(10, 100)), table.reshape(10, 100))
    assert [int(permutation(index)) for index in (0, 999)] == table[[0, 999]].tolist()
    assert permutation([]).shape == (0,)


def test_neighbours_are_separated():
    images = Permutation(LARGE, (1234, 0))(np.arange(LARGE))
    # A random permutation moves an index by size / 3 on average (standard error 0.03 %).
    displacement = np.abs(images - np.arange(LARGE)).mean()
    assert displacement == pytest.approx(LARGE / 3, rel=2e-3)
    # It keeps about one pair of neighbours in order, and about one index in place.
    assert np.count_nonzero(np.diff(images) == 1) < 8
    assert np.count_nonzero(images == np.arange(LARGE)) < 8
    # Its successive values are uncorrelated (standard error 0.001).
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 5e-3


def test_every_order_of_four_is_reached_equally_often():
    keys = 4800
    orders = [tuple(Permutation(4, (9, key))(np.arange(4)).tolist()) for key in range(keys)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    # 200 each with a standard deviation of 14; five of those.
    assert abs(counts - keys / 24).max() < 70


def test_every_part_of_the_key_changes_the_order():
    tables = [
        tuple(Permutation(1000, key)(np.arange(1000)).tolist())
        for key in [(0, 0), (0, 1), (1, 0), (1, 1), (11, 1), (1, 11)]
    ]
    assert len(set(tables)) == len(tables)
    for table in tables[1:]:  # two random orders agree at one index on average
        assert np.count_nonzero(np.equal(table, tables[0])) < 8


def test_order_never_changes():
    """Runs resume in the order they began with, so these values are for ever."""
    assert Permutation(10, (1234, 0))(np.arange(10)).tolist() == [2, 3, 6, 7, 4, 1, 5, 9, 0, 8]
    images = Permutation(10**12, (1234, 5))([0, 1, 10**12 - 1])
    assert images.tolist() == [569176122558, 740516527214, 170385449031]
