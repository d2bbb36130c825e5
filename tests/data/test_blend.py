from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.config import (
    Config,
    DataConfig,
    ModelConfig,
    StageConfig,
    TrainConfig,
    phases,
)
from megatron_ngpt.data.blend import BlendStream
from megatron_ngpt.data.corpus import Share, Stage, TokenRange
from megatron_ngpt.data.loader import train_loader
from megatron_ngpt.data.stream import SampleStream

SEQ_LEN = 4
# Sizes that sequences of 4 do and do not divide; ids tell the corpora apart.
SIZES = (40, 37, 23, 11)


@pytest.fixture(scope="module")
def corpora(make_dataset) -> list[TokenRange]:
    """Corpus i holds the ids from 100 * i on, each once."""
    made = []
    for i, size in enumerate(SIZES):
        dataset = make_dataset([size], 100 * i + np.arange(size))
        made.append(TokenRange(dataset, 0, size))
    return made


def shares(corpora, weights: dict[int, float], epochs: dict[int, int] | None = None):
    return tuple(
        Share(corpora[i], f"corpus{i}", weight, (epochs or {}).get(i, 0))
        for i, weight in weights.items()
    )


def corpus_of(stream: BlendStream, number: int) -> TokenRange:
    (place,) = stream.places(np.array([number]))
    return place.corpus


def config(**train) -> Config:
    return Config(
        model=ModelConfig(vocab_size=400),
        data=DataConfig(seq_len=SEQ_LEN),
        train=TrainConfig(**{"global_batch": 12, "micro_batch": 1, "steps": 10} | train),
    )


def assert_nothing_lost_or_repeated(rows: np.ndarray, corpora):
    """Each corpus' rows are, in order, the samples 0, 1, 2 ... of its own stream."""
    for i, corpus in enumerate(corpora):
        mine = rows[rows[:, 0] // 100 == i]
        expected = SampleStream(corpus, SEQ_LEN, seed=5).batch(np.arange(len(mine)))
        assert np.array_equal(mine, expected)
        passes = len(mine) * SEQ_LEN // corpus.token_count
        counts = Counter(mine[:, :-1].ravel().tolist())
        # Passes are shuffled, so only the pass that is under way may be read in part.
        assert all(passes - 1 <= counts[100 * i + t] <= passes + 2 for t in range(SIZES[i]))


blends = st.dictionaries(st.integers(0, 3), st.integers(1, 9), min_size=1)


@settings(deadline=None, max_examples=80)
@given(weights=st.lists(blends, min_size=1, max_size=4), lengths=st.lists(st.integers(1, 300)))
def test_stages_lose_and_repeat_no_token_of_any_corpus(corpora, weights, lengths):
    starts = np.cumsum([0, *lengths])[: len(weights)].tolist()
    stages = [Stage(at, shares(corpora, w)) for at, w in zip(starts, weights, strict=False)]
    rows = BlendStream(stages, SEQ_LEN, seed=5).batch(np.arange(400))
    assert_nothing_lost_or_repeated(rows, corpora)
    ends = [-(-at // SEQ_LEN) for at in starts[1:]] + [400]
    first = 0
    for end, blend in zip(ends, weights, strict=False):
        part = rows[first:end, 0] // 100
        for i in range(len(corpora)):
            share = blend.get(i, 0) / sum(blend.values())
            counts = np.cumsum(part == i)
            assert (np.abs(counts - share * np.arange(1, len(part) + 1)) < 1).all()
        first = max(first, end)


@settings(deadline=None, max_examples=60)
@given(
    weights=st.tuples(blends, blends),
    start=st.integers(0, 200),
    lengths=st.lists(st.sampled_from([2, 4, 6, 12]), min_size=1, max_size=4),
)
def test_changing_seq_len_loses_and_repeats_no_token(corpora, weights, start, lengths):
    """Units of 12 tokens: whatever seq_len each 120 tokens of the run have, they are the same."""
    stages = [Stage(at, shares(corpora, w)) for at, w in zip((0, start), weights, strict=True)]
    units = BlendStream(stages, 12, seed=5).batch(np.arange(10 * len(lengths)))
    for part, seq_len in enumerate(lengths):
        stream = BlendStream(stages, seq_len, seed=5, unit=12)
        per_part = 120 // seq_len
        rows = stream.batch(np.arange(part * per_part, (part + 1) * per_part))
        whole = units[part * 10 : (part + 1) * 10]
        assert rows[:, :-1].ravel().tolist() == whole[:, :-1].ravel().tolist()
        assert rows[:, 1:].ravel().tolist() == whole[:, 1:].ravel().tolist()
        for number in (part * per_part, (part + 1) * per_part - 1):
            of_unit = corpus_of(BlendStream(stages, 12, seed=5), number * seq_len // 12)
            assert corpus_of(stream, number) is of_unit


def test_limit_of_epochs_counts_samples_whatever_the_unit(corpora):
    """Corpus 1 has 37 tokens: 4 units of 12 begin in one pass, 24 samples of 2."""
    stages = [Stage(0, shares(corpora, {1: 1}, epochs={1: 1}))]
    stream = BlendStream(stages, 2, seed=5, unit=12)
    assert stream.first_beyond_epochs().number == 24
    stream.batch(np.arange(24))
    with pytest.raises(ValueError, match="when sample 24 wants more"):
        stream.batch(np.arange(20, 30))


def test_after_lcm_many_samples_every_token_was_an_input_equally_often(corpora):
    """Equal weights, 4 * 40 * 37 samples: each corpus is read through a whole number of times."""
    stream = BlendStream([Stage(0, shares(corpora[:2], {0: 1, 1: 1}))], SEQ_LEN, seed=5)
    inputs = stream.batch(np.arange(2 * 40 * 37))[:, :-1]
    counts = np.bincount(inputs.ravel())
    assert counts[:40].tolist() == [SEQ_LEN * 37] * 40
    assert counts[100:].tolist() == [SEQ_LEN * 40] * 37


def test_a_blend_of_one_is_the_corpus_itself(corpora):
    stream = BlendStream([Stage(0, shares(corpora, {2: 7.5}))], SEQ_LEN, seed=5)
    numbers = np.arange(50)
    assert np.array_equal(
        stream.batch(numbers), SampleStream(corpora[2], SEQ_LEN, seed=5).batch(numbers)
    )


def test_asking_changes_nothing(corpora):
    later = Stage(300, shares(corpora, {0: 1, 3: 2}))
    stages = [Stage(0, shares(corpora, {0: 0.5, 1: 0.3, 2: 0.2})), later]
    stream = BlendStream(stages, SEQ_LEN, seed=5)
    whole = stream.batch(np.arange(300))
    numbers = np.array([250, 3, 74, 75, 3, 299, 76])  # any order, on both sides, repeated
    assert np.array_equal(stream.batch(numbers), whole[numbers])
    for number in numbers.tolist():
        found = corpus_of(stream, number)
        assert found is corpora[int(whole[number, 0]) // 100]


def test_ranks_batch_size_and_restarts_do_not_change_the_stream(corpora):
    stages = (Stage(0, shares(corpora, {0: 5, 1: 3})), Stage(101, shares(corpora, {1: 1, 2: 1})))
    expected = BlendStream(stages, SEQ_LEN, 1234).batch(np.arange(72))[:, :-1]
    consumed, read = 0, []
    for dp, global_batch, steps in ((1, 12, 2), (2, 6, 3), (3, 15, 2)):
        settings = config(global_batch=global_batch, steps=99)
        loaders = [
            train_loader(settings, stages, dp=dp, dp_rank=rank, consumed=consumed)
            for rank in range(dp)
        ]
        for _ in range(steps):
            parts = [next(loader) for loader in loaders]
            read += [part.tokens.flatten(0, 1).numpy() for part, _ in parts]
            consumed = parts[0][1]
        for loader in loaders:
            loader.close()
    assert np.array_equal(np.concatenate(read), expected)


def test_limit_of_epochs_is_told_before_the_first_step(corpora):
    """Corpus 1 has 37 tokens: 19 samples of 4 begin in 2 passes; of 24 samples 12 are its."""
    stages = (Stage(0, shares(corpora, {0: 1, 1: 1}, epochs={1: 2})),)
    train_loader(config(steps=3), stages, dp=1, dp_rank=0, consumed=0).close()
    with pytest.raises(ValueError, match=r"corpus corpus1 \(.*\) has been read epochs = 2") as e:
        train_loader(config(steps=4), stages, dp=1, dp_rank=0, consumed=0)
    assert "after step 3, and train.steps = 4: raise its epochs" in str(e.value)
    plan = phases(config(steps=10), 9, 30 * SEQ_LEN)
    with pytest.raises(ValueError, match=r"after step 9, and train\.steps = 10"):
        train_loader(config(steps=10), stages, dp=1, dp_rank=0, consumed=30, plan=plan)


def test_limit_of_epochs_reckons_with_the_batches_to_come(corpora):
    """Three steps of 12 samples would do, one of 12 and two of 24 would not."""
    stages = (Stage(0, shares(corpora, {0: 1, 1: 1}, epochs={1: 2})),)
    now = config(steps=3)
    larger = StageConfig(tokens=12 * SEQ_LEN, global_batch=24)
    plan = phases(replace(now, data=replace(now.data, stages=(larger,))))
    with pytest.raises(ValueError, match=r"after step 2, and train\.steps = 3"):
        train_loader(now, stages, dp=1, dp_rank=0, consumed=0, plan=plan)


@settings(deadline=None, max_examples=60)
@given(
    weights=st.tuples(blends, blends),
    epochs=st.dictionaries(st.integers(0, 3), st.integers(1, 5)),
    start=st.integers(0, 200),
)
def test_reading_ends_where_it_is_foretold(corpora, weights, epochs, start):
    starts = (0, start)
    limited, unlimited = (
        [Stage(at, shares(corpora, w, limit)) for at, w in zip(starts, weights, strict=True)]
        for limit in (epochs, {})
    )
    stream = BlendStream(limited, SEQ_LEN, seed=5)
    free = BlendStream(unlimited, SEQ_LEN, seed=5)
    end = stream.first_beyond_epochs()
    if end is None:
        stream.batch(np.arange(2000))
        return
    rows = stream.batch(np.arange(end.number))
    with pytest.raises(ValueError, match=f"epochs = {end.share.epochs} times"):
        stream.batch(np.array([end.number]))
    corpus = corpora.index(end.share.corpus)
    assert corpus_of(free, end.number) is end.share.corpus
    mine = (rows[:, 0] // 100 == corpus).sum()
    least = SIZES[corpus] * end.share.epochs
    # Exactly the samples that begin in the allowed passes, or more of them before the limit came.
    assert mine * SEQ_LEN >= least
    if all(corpus in w for w in weights):
        assert (mine - 1) * SEQ_LEN < least


def test_weight_too_small_to_be_dealt_names_the_blend(corpora):
    blend = shares(corpora, {0: 1.0, 1: 12_345_678.9})
    with pytest.raises(ValueError, match=r"corpus0 and the corpora beside it: weight 1\.0 is less"):
        BlendStream([Stage(0, blend)], SEQ_LEN, seed=5)


def test_wrong_id_names_the_corpus_that_holds_it(corpora):
    stages = (Stage(0, shares(corpora, {0: 1, 3: 1})),)
    small = replace(config(), model=ModelConfig(vocab_size=300))
    with (
        train_loader(small, stages, dp=1, dp_rank=0, consumed=0) as loader,
        pytest.raises(ValueError, match=r"holds token id 3\d\d, but model.vocab_size = 300") as e,
    ):
        next(loader)
    assert corpora[3].dataset.prefix in str(e.value)
