import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_ngpt.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from megatron_ngpt.data.corpus import Share, Stage, TokenRange
from megatron_ngpt.data.loader import Batch, BatchReader, Loader, eval_batches, train_loader
from megatron_ngpt.data.stream import SampleStream

GLOBAL_BATCH, SEQ_LEN, TOKENS = 12, 7, 1000
LAYOUTS = [(1, 12), (1, 1), (2, 3), (3, 4), (4, 1), (12, 1)]  # dp, micro_batch


def config(micro_batch=3, prefetch=2, steps=10, seed=1, eval_steps=3) -> Config:
    return Config(
        model=ModelConfig(vocab_size=TOKENS),
        data=DataConfig(seq_len=SEQ_LEN, prefetch=prefetch),
        train=TrainConfig(
            global_batch=GLOBAL_BATCH, micro_batch=micro_batch, steps=steps, seed=seed
        ),
        eval=EvalConfig(steps=eval_steps),
    )


def reader(corpus: TokenRange, **changes) -> BatchReader:
    base = BatchReader(
        stream=SampleStream(corpus, SEQ_LEN, seed=1),
        global_batch=GLOBAL_BATCH,
        micro_batch=3,
        dp=1,
        dp_rank=0,
        vocab_size=TOKENS,
    )
    return replace(base, **changes)


def samples(batches: list[Batch]) -> np.ndarray:
    """The [B, T + 1] samples that batches hold, in order."""
    rows = [torch.cat([batch.tokens, batch.targets[..., -1:]], dim=-1) for batch in batches]
    return torch.cat([row.flatten(0, 1) for row in rows]).numpy()


def only(corpus: TokenRange) -> tuple[Stage, ...]:
    return (Stage(0, (Share(corpus, "only"),)),)


def take(loader: Loader, count: int) -> tuple[list[Batch], list[int]]:
    with loader:
        batches, states = zip(*(next(loader) for _ in range(count)), strict=True)
    return list(batches), list(states)


def test_batch_has_micro_batches_of_inputs_and_next_tokens(make_corpus):
    batch, consumed = reader(make_corpus(TOKENS), dp=2).read(0)
    assert consumed == GLOBAL_BATCH
    for tensor in batch:
        assert tensor.shape == (2, 3, SEQ_LEN)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    assert torch.equal(batch.targets, (batch.tokens + 1) % TOKENS)


@pytest.mark.parametrize(("dp", "micro_batch"), LAYOUTS)
def test_ranks_and_micro_batches_never_reorder(make_corpus, dp, micro_batch):
    corpus, steps = make_corpus(TOKENS), 15  # more than one pass
    expected = SampleStream(corpus, SEQ_LEN, seed=1).batch(np.arange(steps * GLOBAL_BATCH))
    for step in range(steps):
        parts = [
            reader(corpus, dp=dp, dp_rank=rank, micro_batch=micro_batch).read(step * GLOBAL_BATCH)
            for rank in range(dp)
        ]
        rows = slice(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
        assert np.array_equal(samples([batch for batch, _ in parts]), expected[rows])


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resume_from_consumed_equals_the_unbroken_run(make_corpus, prefetch):
    corpus = make_corpus(TOKENS)
    whole, states = take(train_loader(config(), only(corpus), dp=1, dp_rank=0, consumed=0), 12)
    assert states == list(range(GLOBAL_BATCH, 13 * GLOBAL_BATCH, GLOBAL_BATCH))
    for stop in (1, 5, 11):
        # Another length, prefetch and micro-batch: none of them belongs to the order.
        after = config(prefetch=prefetch, steps=99, micro_batch=4)
        loader = train_loader(after, only(corpus), dp=1, dp_rank=0, consumed=states[stop - 1])
        rest, rest_states = take(loader, 12 - stop)
        assert np.array_equal(samples(rest), samples(whole[stop:]))
        assert rest_states == states[stop:]


def test_a_run_reads_every_token_of_a_pass_once(make_corpus):
    corpus = make_corpus(GLOBAL_BATCH * SEQ_LEN * 5)
    settings = replace(config(), model=ModelConfig(vocab_size=corpus.token_count))
    inputs = []
    for rank in range(2):
        batches, _ = take(train_loader(settings, only(corpus), dp=2, dp_rank=rank, consumed=0), 5)
        inputs += [batch.tokens.flatten() for batch in batches]
    assert torch.cat(inputs).sort().values.tolist() == list(range(corpus.token_count))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_error_of_reading_is_raised_where_its_batch_was_due(make_dataset, prefetch):
    tokens = np.arange(TOKENS)
    corpus = TokenRange(make_dataset([TOKENS], tokens), 0, TOKENS)
    starts = SampleStream(corpus, SEQ_LEN, seed=1).starts(np.arange(3 * GLOBAL_BATCH))
    tokens[starts[2 * GLOBAL_BATCH] + 1] = 50257  # first read by step 2
    damaged = TokenRange(make_dataset([TOKENS], tokens), 0, TOKENS)
    with Loader(reader(damaged), prefetch=prefetch) as loader:
        for step in range(2):
            assert next(loader)[1] == (step + 1) * GLOBAL_BATCH
        for _ in range(2):  # asking again does not skip the batch
            with pytest.raises(ValueError, match="token id 50257"):
                next(loader)


def test_id_outside_the_vocabulary_names_the_settings(make_dataset):
    for wrong in (TOKENS, -1):
        dataset = make_dataset([8], np.array([0, 1, 2, 3, wrong, 5, 6, 7]))
        with pytest.raises(ValueError, match=f"token id {wrong}, but model.vocab_size = 1000") as e:
            reader(TokenRange(dataset, 0, 8)).read(0)
        assert f"data.train = {dataset.prefix}" in str(e.value)
        assert "set model.vocab_size" in str(e.value)


def test_reads_no_further_ahead_than_told(make_corpus):
    read = []

    class Counting(BatchReader):
        def read(self, consumed):
            read.append(consumed)
            return super().read(consumed)

    plain = reader(make_corpus(TOKENS))
    take(Loader(Counting(**vars(plain)), prefetch=3), 2)
    assert read == [step * GLOBAL_BATCH for step in range(len(read))]
    assert 2 <= len(read) <= 5


def test_leaving_the_loader_ends_its_thread(make_corpus):
    with Loader(reader(make_corpus(TOKENS)), prefetch=2) as loader:
        next(loader)
        assert "data-loader_0" in [thread.name for thread in threading.enumerate()]
    assert "data-loader_0" not in [thread.name for thread in threading.enumerate()]


def test_a_loader_left_open_does_not_hold_up_the_exit(make_dataset):
    script = (
        "import sys\n"
        "from megatron_ngpt.config import Config, DataConfig, ModelConfig\n"
        "from megatron_ngpt.data.corpus import open_corpora\n"
        "from megatron_ngpt.data.loader import train_loader\n"
        "data = DataConfig(train=sys.argv[1], valid_fraction=0, seq_len=16, prefetch=4)\n"
        "train, _ = open_corpora(data)\n"
        "loader = train_loader(Config(data=data), train, dp=1, dp_rank=0, consumed=0)\n"
        "print(next(loader)[1])\n"
    )
    command = [sys.executable, "-c", script, make_dataset([1000]).prefix]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "32\n", "")


@pytest.mark.parametrize(("dp", "micro_batch"), LAYOUTS)
def test_evaluation_reads_the_same_samples_on_every_layout(make_corpus, dp, micro_batch):
    corpus = make_corpus(TOKENS)
    settings = config(micro_batch, seed=dp)
    ranks = [
        list(eval_batches(settings, Share(corpus, "only"), dp=dp, dp_rank=rank))
        for rank in range(dp)
    ]
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    again = list(eval_batches(config(seed=99), Share(corpus, "only"), dp=1, dp_rank=0))
    assert len(again) == 3
    assert np.array_equal(samples(together), samples(again))


def test_evaluation_wraps_a_short_corpus(make_corpus):
    batches = list(eval_batches(config(), Share(make_corpus(10), "only"), dp=1, dp_rank=0))
    counts = torch.cat([batch.tokens.flatten() for batch in batches]).bincount()
    # 3 steps * 12 samples * 7 tokens over 10 tokens: 25 passes and 2 tokens.
    assert sorted(counts.tolist()) == [25] * 8 + [26] * 2


def test_evaluation_names_the_setting_that_chose_the_corpus(make_dataset):
    dataset = make_dataset([8], np.full(8, TOKENS))
    corpus = Share(TokenRange(dataset, 0, 8), "only")
    with pytest.raises(ValueError, match=r"^data\.train = "):
        next(eval_batches(config(), corpus, dp=1, dp_rank=0))
    own = replace(config(), data=DataConfig(valid=dataset.prefix, seq_len=SEQ_LEN))
    with pytest.raises(ValueError, match=r"^data\.valid = "):
        next(eval_batches(own, corpus, dp=1, dp_rank=0))


@pytest.mark.gpu
def test_pinned_batches_hold_the_same_tokens(make_corpus):
    plain = reader(make_corpus(TOKENS))
    with Loader(replace(plain, pin=True), prefetch=2) as loader:
        batch, _ = next(loader)
    assert batch.tokens.is_pinned()
    assert batch.targets.is_pinned()
    expected, _ = plain.read(0)
    assert torch.equal(batch.tokens.cuda(non_blocking=True).cpu(), expected.tokens)
