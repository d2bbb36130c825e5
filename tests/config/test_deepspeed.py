import json
from typing import get_args, get_type_hints

import pytest

from megatron_ngpt.config import Config, EngineConfig, OptimConfig, TrainConfig
from megatron_ngpt.config.deepspeed import deepspeed_config, uses_low_precision_copy

STAGES = get_args(get_type_hints(OptimConfig)["zero_stage"])


def made(stage=1, dtype="fp32", dp=1, overrides="", **train):
    return deepspeed_config(
        Config(
            optim=OptimConfig(zero_stage=stage, grad_clip=0.7),
            train=TrainConfig(dtype=dtype, **train),
            engine=EngineConfig(deepspeed_overrides=str(overrides)),
        ),
        dp,
    )


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "dp", "accumulation"),
    [(24, 2, 3, 4), (8, 8, 1, 1), (8, 1, 4, 2)],
)
def test_batch_triple_follows_from_the_global_batch(global_batch, micro_batch, dp, accumulation):
    found = made(global_batch=global_batch, micro_batch=micro_batch, dp=dp)
    assert found["train_micro_batch_size_per_gpu"] == micro_batch
    assert found["gradient_accumulation_steps"] == accumulation
    assert "train_batch_size" not in found


@pytest.mark.parametrize("stage", STAGES)
def test_stage_and_what_the_projection_relies_on(stage):
    zero = made(stage)["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["round_robin_gradients"] is False
    assert zero["sub_group_size"] > 10**11  # above any model's parameters on one rank


@pytest.mark.parametrize(("parameters", "bucket"), [(1000, 1000), (10**10, 500_000_000)])
def test_the_bucket_is_no_larger_than_the_model(parameters, bucket):
    zero = deepspeed_config(Config(), 2, parameters)["zero_optimization"]
    assert zero["reduce_bucket_size"] == bucket


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_is_left_to_deepspeed_where_it_knows_the_norm(stage):
    assert made(stage)["gradient_clipping"] == (0.7 if stage else 0.0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_low_precision_copies_at_stages_1_and_2_of_bf16_only(stage, dtype):
    found = made(stage, dtype)
    copies = dtype == "bf16" and stage in (1, 2)
    assert found.get("bf16") == ({"enabled": True} if copies else None)
    assert found.get("data_types") == ({"grad_accum_dtype": "fp32"} if copies else None)
    train, optim = TrainConfig(dtype=dtype), OptimConfig(zero_stage=stage)
    assert uses_low_precision_copy(Config(train=train, optim=optim)) == copies
    assert "fp16" not in found


def test_overrides_merge_key_by_key(tmp_path):
    path = tmp_path / "overrides.json"
    mine = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True}
    path.write_text(json.dumps(mine))
    expected = made(2)
    expected["wall_clock_breakdown"] = expected["zero_optimization"]["overlap_comm"] = True
    assert made(2, overrides=path) == expected


@pytest.mark.parametrize(
    ("mine", "owner"),
    [
        ({"train_batch_size": 8}, "train.global_batch"),
        ({"train_micro_batch_size_per_gpu": 8}, "train.micro_batch"),
        ({"gradient_accumulation_steps": 8}, "train.global_batch"),
        ({"gradient_clipping": 1.0}, "optim.grad_clip"),
        ({"optimizer": {"type": "Adam"}}, "optim"),
        ({"scheduler": {}}, "optim.schedule"),
        ({"bf16": {"enabled": True}}, "train.dtype"),
        ({"fp16": {"enabled": True}}, "train.dtype"),
        ({"zero_optimization": {"stage": 2}}, "optim.zero_stage"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "the projection"),
        ({"zero_optimization": False}, "keys inside"),
    ],
)
def test_overrides_may_not_touch_what_a_setting_owns(tmp_path, mine, owner):
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps(mine))
    key = next(iter(mine))
    with pytest.raises(ValueError, match=f"(?s)overrides.json sets {key}.*{owner}"):
        made(overrides=path)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not readable as JSON"), ("[]", "one JSON object"), (None, "No such")]
)
def test_bad_overrides_file_is_named(tmp_path, text, says):
    path = tmp_path / "overrides.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)engine\.deepspeed_overrides = .*{says}"):
        made(overrides=path)


@pytest.mark.parametrize(
    "mine",
    [
        {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        {"zero_optimization": {"offload_param": {"device": "nvme"}}},
        {"zero_optimization": {"zero_hpz_partition_size": 2}},
        {"torch_autocast": {"enabled": True}},
    ],
)
def test_what_the_engine_cannot_do_is_told_in_one_line(tmp_path, mine):
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps(mine))
    with pytest.raises(
        ValueError, match=r"sets .*, which this engine cannot do: .*: remove it"
    ) as e:
        made(overrides=path)
    assert "\n" not in str(e.value)
