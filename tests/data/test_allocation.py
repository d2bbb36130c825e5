import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.allocation import PERIOD, Allocation

weights = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def assert_within_one_sample(allocation: Allocation, samples: int):
    """In integers: abs(D * count_c(n) - k_c * n) < D for every corpus c and every n."""
    corpora, _ = allocation(np.arange(samples))
    for corpus, quota in enumerate(allocation.quotas.tolist()):
        counts = np.concatenate([[0], np.cumsum(corpora == corpus)])
        lags = allocation.period * counts - quota * np.arange(samples + 1)
        assert np.abs(lags).max() < allocation.period


@settings(deadline=None, max_examples=150)
@given(weights=weights)
def test_no_corpus_is_ever_a_whole_sample_off_its_share(weights):
    allocation = Allocation(weights)
    shares = allocation.quotas / allocation.period
    assert np.allclose(shares, np.array(weights) / sum(weights), rtol=1e-12)
    assert_within_one_sample(allocation, 2 * allocation.period + 1)


@pytest.mark.parametrize(
    "weights",
    [
        [10_000] + [1] * 1000,  # one corpus far above the others, which all want the same slots
        [10_000, 9_999, 1],
        [1.0] * 1000,
        list(range(1, 101)),
    ],
    ids=["heavy and many", "two and a trace", "equal", "all different"],
)
def test_bound_holds_for_blends_that_divisor_methods_get_wrong(weights):
    assert_within_one_sample(Allocation(weights), 30_000)


@settings(deadline=None, max_examples=60)
@given(weights=weights, start=st.integers(0, 10**15))
def test_every_corpus_is_read_in_its_own_order_without_gaps(weights, start):
    allocation = Allocation(weights)
    numbers = np.arange(start, start + 500)
    corpora, ordinals = allocation(numbers)
    before, after = allocation.counts(start), allocation.counts(start + 500)
    for corpus in range(len(weights)):
        expected = np.arange(before[corpus], after[corpus])
        assert np.array_equal(ordinals[corpora == corpus], expected)
    assert before.sum() == start
    back = [allocation.number(*found) for found in zip(corpora[:20], ordinals[:20], strict=True)]
    assert back == numbers[:20].tolist()


def test_decimals_are_exact():
    assert Allocation([0.7, 0.2, 0.1]).quotas.tolist() == [7, 2, 1]
    assert Allocation([1e-6, 1 - 1e-6]).quotas.tolist() == [1, 999_999]


def test_weights_without_a_short_period_are_rounded_to_a_millionth():
    weights = [12_345_678_901, 2_345_678_903, 77_000_000]
    allocation = Allocation(weights)
    assert allocation.period == PERIOD
    errors = allocation.quotas / PERIOD - np.array(weights) / sum(weights)
    assert np.abs(errors).max() < 1 / PERIOD
    assert_within_one_sample(allocation, 100_000)


def test_weight_that_rounds_to_nothing_is_refused():
    with pytest.raises(ValueError, match=r"weight 1\.0 is less than 1e-06 of the blend's sum"):
        Allocation([1.0, 12_345_678.9])


def test_order_never_changes():
    """Runs resume in the order they began with, so these values are for ever."""
    corpora, ordinals = Allocation([0.5, 0.3, 0.2])(np.arange(12))
    assert corpora.tolist() == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 0, 1]
    assert ordinals.tolist() == [0, 0, 1, 0, 2, 1, 3, 2, 4, 1, 5, 3]
