import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.corpus import TokenRange
from megatron_ngpt.data.stream import SampleStream

# Fewer tokens than one sample, a single token, exact multiples and everything between.
shapes = st.tuples(st.integers(1, 60), st.integers(1, 80))


@settings(deadline=None, max_examples=60)
@given(shape=shapes, seed=st.integers(0, 2**32))
def test_after_seq_len_passes_every_token_was_an_input_seq_len_times(make_corpus, shape, seed):
    token_count, seq_len = shape
    samples = SampleStream(make_corpus(token_count), seq_len, seed).batch(np.arange(token_count))
    counts = np.bincount(samples[:, :-1].ravel(), minlength=token_count)
    assert counts.tolist() == [seq_len] * token_count


@settings(deadline=None, max_examples=60)
@given(shape=shapes, epoch=st.integers(0, 5))
def test_an_epoch_is_one_pass_cut_where_the_one_before_it_ended(make_corpus, shape, epoch):
    token_count, seq_len = shape
    stream = SampleStream(make_corpus(token_count), seq_len, seed=3)
    starts = stream.starts(np.arange(stream.first(epoch), stream.first(epoch + 1)))
    multiples = range(0, (epoch + 1) * token_count, seq_len)
    assert sorted(starts.tolist()) == [at for at in multiples if at >= epoch * token_count]


@pytest.mark.parametrize(("token_count", "seq_len"), [(1000, 10), (1000, 7), (10, 7)])
def test_every_token_once_in_the_first_epoch(make_corpus, token_count, seq_len):
    stream = SampleStream(make_corpus(token_count), seq_len, seed=1)
    inputs = stream.batch(np.arange(stream.first(1)))[:, :-1]
    counts = np.bincount(inputs.ravel(), minlength=token_count)
    tail = -token_count % seq_len  # the last sample ends with this many tokens of the next pass
    assert counts.tolist() == [2] * tail + [1] * (token_count - tail)


@settings(deadline=None, max_examples=60)
@given(shape=shapes, numbers=st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_a_sample_is_consecutive_text(make_corpus, shape, numbers):
    token_count, seq_len = shape
    stream = SampleStream(make_corpus(token_count), seq_len, seed=0)
    starts = stream.starts(np.array(numbers))
    expected = (starts[:, None] + np.arange(seq_len + 1)) % token_count
    assert np.array_equal(stream.batch(np.array(numbers)), expected)
    assert np.array_equal(stream.sample(numbers[0]), expected[0])


def test_only_the_range_is_read(make_dataset):
    corpus = TokenRange(make_dataset([10, 20, 5]), 10, 30)
    samples = SampleStream(corpus, 7, seed=0).batch(np.arange(60))
    assert set(samples.ravel().tolist()) == set(range(10, 30))


def test_asking_changes_nothing(make_corpus):
    stream = SampleStream(make_corpus(1000), 7, seed=0)
    whole = stream.batch(np.arange(300))
    numbers = np.array([250, 3, 299, 3, 142, 143])  # any order, across epochs, repeated
    assert np.array_equal(stream.batch(numbers), whole[numbers])
    assert np.array_equal(SampleStream(stream.corpus, 7, seed=0).batch(numbers), whole[numbers])


def test_epochs_and_seeds_have_their_own_order(make_corpus):
    corpus = make_corpus(1000)
    first_pass, second_pass = np.arange(100), np.arange(100, 200)
    orders = [
        tuple((SampleStream(corpus, 10, seed).starts(numbers) % 1000).tolist())
        for seed in (0, 1)
        for numbers in (first_pass, second_pass)
    ]
    assert len(set(orders)) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(0, 1000, 10))}


def test_positions_beyond_32_bits(make_corpus):
    stream = SampleStream(make_corpus(1000), 7, seed=0)
    numbers = np.arange(10**15, 10**15 + 143)
    starts = stream.starts(numbers)
    assert (starts // 7 - numbers.min()).max() < 300
    assert len(np.unique(starts)) == 143
    assert np.array_equal(stream.batch(numbers)[:, 0], starts % 1000)


def test_order_never_changes(make_corpus):
    """Runs resume in the order they began with, so these values are for ever."""
    starts = SampleStream(make_corpus(100), 9, seed=1234).starts(np.arange(15))
    assert starts.tolist() == [18, 27, 90, 63, 99, 9, 45, 81, 0, 72, 54, 36, 189, 135, 198]
