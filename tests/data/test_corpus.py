import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.config import CorpusConfig, DataConfig, StageConfig
from megatron_ngpt.data.corpus import TokenRange, open_corpora, split_corpus


def tokens_of(corpus: TokenRange) -> list[int]:
    return corpus.tokens(0, corpus.token_count).tolist()


def opened(data: DataConfig) -> tuple[TokenRange, TokenRange]:
    """The only corpus to train on and the only one to validate on."""
    ((stage,), (valid,)) = open_corpora(data)
    assert stage.first_token == 0
    return stage.shares[0].corpus, valid.corpus


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=20),
    fraction=st.floats(0.001, 0.999),
)
def test_split_cuts_once_between_documents(make_dataset, lengths, fraction):
    dataset = make_dataset(lengths)
    held_back = max(1, round(fraction * len(lengths)))
    if held_back == len(lengths):
        with pytest.raises(ValueError, match="leaves 0 tokens to train on"):
            split_corpus(dataset, fraction)
        return
    train, valid = split_corpus(dataset, fraction)
    assert tokens_of(train) + tokens_of(valid) == list(range(sum(lengths)))
    assert valid.token_count == sum(lengths[-held_back:])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([5], "holds back 1 of the 1 documents .* leaves 0 tokens to train on and 5"),
        ([0, 5], "leaves 0 tokens to train on and 5"),
        ([5, 0], "leaves 5 tokens to train on and 0 to validate on"),
    ],
)
def test_split_with_an_empty_side_is_refused(make_dataset, lengths, message):
    with pytest.raises(ValueError, match=message) as error:
        split_corpus(make_dataset(lengths), 0.01)
    assert "data.valid_fraction = 0.01" in str(error.value)


def test_range_counts_from_its_own_start(make_dataset):
    corpus = TokenRange(make_dataset([10]), 4, 9)
    assert tokens_of(corpus) == [4, 5, 6, 7, 8]
    assert corpus.tokens(1, 3).tolist() == [5, 6]
    with pytest.raises(AssertionError):
        corpus.tokens(0, 6)


def test_open_holds_back_the_last_documents(make_dataset):
    data = DataConfig(train=make_dataset([3, 4, 2, 1]).prefix, valid_fraction=0.5)
    train, valid = opened(data)
    assert tokens_of(train) == list(range(7))
    assert tokens_of(valid) == [7, 8, 9]


def test_open_takes_a_validation_pair_whole(make_dataset):
    data = DataConfig(train=make_dataset([5]).prefix, valid=make_dataset([2, 1]).prefix)
    train, valid = opened(data)
    assert (train.token_count, valid.token_count) == (5, 3)


def test_open_without_validation(make_dataset):
    (stage,), valid = open_corpora(DataConfig(train=make_dataset([5]).prefix, valid_fraction=0))
    assert stage.shares[0].corpus.token_count == 5
    assert valid == ()


def test_every_corpus_of_every_stage_is_opened_once_and_holds_back_its_own(make_dataset):
    a, b, c = (make_dataset(lengths).prefix for lengths in ([3, 4], [5, 1], [2, 2]))
    first = (CorpusConfig(prefix=a, weight=3, name="a"), CorpusConfig(prefix=b, name="b", epochs=2))
    later = (CorpusConfig(prefix=c, weight=5, name="c"), CorpusConfig(prefix=a, weight=5, name="a"))
    data = DataConfig(
        train=first, valid_fraction=0.5, stages=(StageConfig(tokens=100, train=later),)
    )
    stages, valid = open_corpora(data)
    assert [stage.first_token for stage in stages] == [0, 100]
    names = [[(s.name, s.weight, s.epochs) for s in stage.shares] for stage in stages]
    assert names == [[("a", 3, 0), ("b", 1, 2)], [("c", 5, 0), ("a", 5, 0)]]
    assert stages[0].shares[0].corpus is stages[1].shares[1].corpus
    held_back = [(s.name, s.weight, tokens_of(s.corpus)) for s in valid]
    assert held_back == [("a", 0.75, [3, 4, 5, 6]), ("b", 0.25, [5]), ("c", 0.5, [2, 3])]


def test_open_says_which_setting_has_no_pair(make_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"data\.train is empty: .*tools/preprocess_data\.py"):
        open_corpora(DataConfig())
    absent = str(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"data\.train = .*absent.*preprocess_data\.py"):
        open_corpora(DataConfig(train=absent))
    with pytest.raises(FileNotFoundError, match=r"data\.valid = .*absent"):
        open_corpora(DataConfig(train=make_dataset([5]).prefix, valid=absent))


def test_open_says_which_setting_names_an_unusable_pair(make_dataset):
    with pytest.raises(ValueError, match=r"data\.train = .* holds no tokens"):
        open_corpora(DataConfig(train=make_dataset([0, 0]).prefix))
    damaged = make_dataset([4]).prefix
    with open(damaged + ".bin", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"data\.train = .*\.bin: expected 16 bytes.*found 17"):
        open_corpora(DataConfig(train=damaged))
