"""Phases of a run: when each begins, with which sizes, and what is refused."""

from dataclasses import replace

import pytest

from megatron_ngpt.config import Config, DataConfig, StageConfig, TrainConfig, check, phases

TRAIN = TrainConfig(steps=100, global_batch=24, micro_batch=4)


def configured(*stages: StageConfig, unit: int = 128, **more) -> Config:
    data = DataConfig(train="a", seq_len=16, shuffle_unit=unit, stages=stages)
    return Config(data=data, train=replace(TRAIN, **more))


def test_one_length_is_one_phase():
    (only,) = phases(configured(StageConfig(tokens=1000, train="b")))
    assert (only.first_step, only.first_token, only.end) == (0, 0, 100)
    assert only.config == configured(StageConfig(tokens=1000, train="b"))


def test_lengths_one_after_the_other():
    """A step has 384 tokens, and keeps them until a stage names its batch."""
    config = configured(
        StageConfig(tokens=1000, seq_len=64),
        StageConfig(tokens=1500, train="b"),
        StageConfig(tokens=1537, seq_len=128, global_batch=2),
    )
    check(config)
    found = phases(config)
    sizes = [
        (p.config.data.seq_len, p.config.train.global_batch, p.config.train.micro_batch)
        for p in found
    ]
    assert sizes == [(16, 24, 4), (64, 6, 1), (128, 2, 1)]
    # 1000 tokens are reached in step 3, 1537 in step 5
    assert [(p.first_step, p.first_token, p.end) for p in found] == [
        (0, 0, 3),
        (3, 1152, 5),
        (5, 1920, 100),
    ]
    assert [p.setting for p in found] == ["data.seq_len", "data.stages[0]", "data.stages[2]"]


def test_a_run_that_ends_before_a_stage_does_not_know_it():
    assert len(phases(configured(StageConfig(tokens=384 * 100, seq_len=64)))) == 1
    assert len(phases(configured(StageConfig(tokens=384 * 99, seq_len=64)))) == 2


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        (StageConfig(tokens=1000, seq_len=64), {"unit": 0}, "with data.shuffle_unit = 0: set"),
        (StageConfig(tokens=1000, seq_len=48), {}, r"seq_len = 48 with data.shuffle_unit = 128"),
        (
            StageConfig(tokens=900, seq_len=128, global_batch=4),
            {"global_batch": 20},
            "token 960, no",
        ),
        (StageConfig(tokens=1000, seq_len=128), {"global_batch": 20}, r"20 x 16 tokens of a step"),
        (StageConfig(tokens=1000), {}, r"stages\[0\] changes nothing"),
        (StageConfig(tokens=1000, seq_len=-1), {}, r"stages\[0\].seq_len = -1"),
    ],
)
def test_refused(stage, more, message):
    with pytest.raises(ValueError, match=message):
        check(configured(stage, **more))


def test_a_setting_that_does_not_fit_a_later_length_is_refused_at_once():
    config = configured(StageConfig(tokens=1152, seq_len=8))
    config = replace(config, parallel=replace(config.parallel, tp=16))
    with pytest.raises(ValueError, match=r"from data.stages\[0\] on, data.seq_len = 8 is not a"):
        check(config)
