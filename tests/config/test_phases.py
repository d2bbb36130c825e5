"""Phases of a run: when each begins, with which sizes, and what is refused."""

from dataclasses import replace

import pytest

from megatron_ngpt.config import (
    Config,
    DataConfig,
    StageConfig,
    TrainConfig,
    check,
    check_plan,
    phases,
    step_at,
    token_at,
    unreached,
)

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


def begins(config, *done: int) -> list[tuple[int, int]]:
    return [(phase.first_step, phase.first_token) for phase in phases(config, *done)]


def test_a_length_that_does_not_divide_where_it_begins_is_refused():
    config = configured(StageConfig(tokens=900, seq_len=128, global_batch=4), global_batch=20)
    check(config)  # of a saved run it is not known here where it stands
    with pytest.raises(ValueError, match="ends at token 960, no multiple of its seq_len = 128"):
        check_plan(config)


def test_a_stage_begins_at_its_tokens_whatever_the_batches_before():
    """Steps of 384 tokens until step 4, then of 192, 768 or 320."""
    stage = StageConfig(tokens=3072, seq_len=64, global_batch=6)
    assert begins(configured(stage)) == [(0, 0), (8, 3072)]
    for batch, first_step in ((12, 12), (48, 6)):
        config = configured(stage, global_batch=batch)
        check_plan(config, 4, 1536)
        assert begins(config, 4, 1536) == [(4, 1536), (first_step, 3072)]
        # resumed again on the way, and in the stage
        assert begins(config, 5, 1536 + batch * 16)[1] == (first_step, 3072)
        assert begins(config, first_step + 1, 3456) == [(first_step + 1, 3456)]
        assert phases(config, first_step + 1, 3456)[0].config.data.seq_len == 64
    with pytest.raises(ValueError, match=r"end at 2816 and 3136: set data.stages\[0\].tokens"):
        check_plan(configured(stage, global_batch=20), 4, 1536)


def test_a_stage_between_two_steps_begins_after_the_second_as_ever():
    config = configured(StageConfig(tokens=1000, seq_len=64))
    assert begins(config) == [(0, 0), (3, 1152)]
    check_plan(config, 2, 768)
    assert begins(config, 2, 768) == [(2, 768), (3, 1152)]


def test_steps_and_tokens_of_a_plan():
    plan = phases(configured(StageConfig(tokens=1152, seq_len=64, global_batch=2)))
    assert [token_at(plan, step) for step in (0, 3, 4, 100)] == [0, 1152, 1280, 1152 + 97 * 128]
    assert [step_at(plan, token) for token in (0, 383, 384, 1151, 1152, 1280)] == [0, 0, 1, 2, 3, 4]


def test_a_stage_that_never_begins_is_told():
    stages = (StageConfig(tokens=38399, train="b"), StageConfig(tokens=38400, seq_len=64))
    config = configured(*stages)
    (line,) = unreached(config, phases(config))
    assert line.startswith("data.stages[1] never begins: it is at 38,400 tokens")
