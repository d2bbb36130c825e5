import json
from dataclasses import replace

import pytest

from megatron_ngpt.config import Config, EngineConfig, TrainConfig, check, check_batch

IMPOSSIBLE = {
    "--model.width 0": ["model.width = 0", "at least 1"],
    "--model.layers 0": ["model.layers = 0", "at least 1"],
    "--model.heads 0": ["model.heads = 0", "at least 1"],
    "--model.width 100 --model.heads 3": ["model.width = 100", "model.heads = 3", "model.head_dim"],
    "--model.attention ensemble --model.maps 1": ["model.maps = 1", "at least 2"],
    "--model.attention differential --model.maps 3": ["model.maps = 3", "it has 2", "ensemble"],
    "--model.maps 2": ["model.maps = 2", "model.attention = standard", "it has 1"],
    "--model.map_dim 8": ["model.map_dim = 8", "model.head_dim = 32", "set model.map_dim to 0"],
    "--model.attention ensemble --model.maps 17": ["model.map_dim = 0", "model.maps = 17"],
    "--model.attention differential --model.map_dim 64": ["model.map_dim = 64 is above", "lower"],
    "--model.hyperspheres 3": ["model.hyperspheres = 3", "model.width = 256", "change one"],
    "--model.sphere_slack 1": ["model.sphere_slack = 1", "below 1"],
    "--model.architecture gpt --model.qk_norm false": ["model.qk_norm", "gpt has not"],
    "--model.rope_frequencies [1.0]": ["model.rope_frequencies has 1", "16 pairs"],
    "--model.s_z.init [1.0]": ["model.s_z.init = [1.0]", "one number"],
    "--model.s_qk.scale [1.0,2.0]": ["model.s_qk.scale has 2", "model.layers = 6", "each"],
    "--model.tied_embedding true --parallel.pp 2": ["model.tied_embedding", "parallel.pp = 2"],
    "--model.value_residual true --parallel.pp 2": ["model.value_residual", "parallel.pp to 1"],
    "--model.head_dim 7": ["model.head_dim = 7", "even"],
    "--model.rotary_fraction 0.3": ["rotary_fraction = 0.3 turns 9 of", "map_dim = 32", "even"],
    "--model.rotary_fraction 1.5": ["rotary_fraction = 1.5 turns 48 of", "up to 1"],
    "--model.rotary_fraction 0.01": ["rotary_fraction = 0.01 turns 0 of", "positive"],
    "--model.mlp_eps -1": ["model.mlp_eps = -1", "at least 0"],
    "--model.heads 8 --model.kv_heads 3": ["model.kv_heads = 3", "model.heads = 8"],
    "--model.rope_theta 0": ["model.rope_theta = 0", "at least 1"],
    "--optim.lr -1": ["optim.lr = -1", "at least 0"],
    "--optim.eps -1": ["optim.eps = -1", "at least 0"],
    "--optim.lr 1e-4 --optim.min_lr 1e-3": ["optim.min_lr = 0.001", "optim.lr = 0.0001", "lower"],
    "--optim.warmup_steps 11 --train.steps 10": [
        "optim.warmup_steps = 11", "train.steps = 10", "shorten",
    ],
    "--optim.schedule wsd --optim.warmup_steps 4 --optim.decay_steps 7 --train.steps 10": [
        "decay_steps = 11", "train.steps = 10", "shorten",
    ],
    "--optim.betas [0.9,1.0]": ["optim.betas = [0.9, 1.0]", "[0, 1)"],
    "--train.steps 0": ["train.steps = 0", "at least 1"],
    "--train.offload true": ["train.offload", "set train.recompute to true"],
    "--train.recompute_keep [matmul]": ["recompute_keep = ['matmul']", "set train.recompute to"],
    "--train.recompute true --train.recompute_keep [matmul] --train.compile true": [
        "recompute_keep = ['matmul'] with train.compile", "leave one",
    ],
    "--train.recompute true --train.recompute_keep [norm]": [
        "recompute_keep", "norm", "'attention', 'matmul', 'all_gather'",
    ],
    "--train.micro_batch 0": ["train.micro_batch = 0", "at least 1"],
    "--train.stop_at 11 --train.steps 10": ["train.stop_at = 11", "train.steps = 10", "set 0"],
    "--data.train s3://bucket/a": ["data.train = s3://bucket/a is a URL", "data.cache_dir"],
    "--data.shuffle_unit 1500": ["data.shuffle_unit = 1500", "multiple of data.seq_len = 1024"],
    "--data.valid_fraction 1": ["data.valid_fraction = 1", "[0, 1)"],
    '--data.train [{"prefix":"a","weight":0}]': ["data.train: a has weight = 0.0", "leave out"],
    '--data.train [{"prefix":"a","weight":.inf}]': ["data.train[0].weight = inf", "finite"],
    '--data.train [{"prefix":"a","epochs":-1}]': ["a has epochs = -1", "0 means no limit"],
    '--data.train [{"prefix":"x/a"},{"prefix":"x/./a"}]': ["names x/a 2 times", "once"],
    '--data.train [{"prefix":"x/a"},{"prefix":"y/a"}]': ["x/a and y/a are both called a", "name"],
    '--data.train [{"prefx":"a"}]': ["prefx", "needs a prefix"],
    '--data.valid [{"prefix":"a","epochs":2}]': ["a has epochs = 2", "leave epochs out"],
    '--data.stages [{"tokens":0,"train":"a"}]': ["data.stages[0].tokens = 0", "above 0"],
    '--data.stages [{"tokens":9,"train":"a"},{"tokens":9,"train":"b"}]': ["stages[1].tokens = 9"],
    '--data.stages [{"tokens":9,"train":[]}]': ["data.stages[0] changes nothing"],
    "--data.seq_len 0": ["data.seq_len = 0", "at least 1"],
    "--model.rope_scaling yarn --model.rope_factor 4": ["model.rope_original = 0", "data.seq_len"],
    "--model.rope_factor 4": ["model.rope_factor = 4", "set both"],
    "--model.rope_scaling ntk": ["model.rope_scaling = ntk", "set both"],
    "--parallel.cp 4 --parallel.ulysses 3": ["parallel.ulysses = 3", "parallel.cp = 4", "change"],
    "--parallel.cp 3 --data.seq_len 64": ["data.seq_len = 64", "tp * cp", "= 3"],
    "--parallel.cp 4 --parallel.ulysses 1 --data.seq_len 20": ["data.seq_len = 20", "ring", "= 8"],
    "--data.document_mask true --data.train x.bin": ["mask", "x.bin is a flat", "data.eod"],
    "--parallel.pp 2 --optim.zero_stage 2": ["zero_stage = 2", "parallel.pp = 2", "to 0 or 1"],
    "--parallel.schedule zbv --parallel.stages_per_rank 3": ["stages_per_rank = 3", "zbv has 2"],
    "--parallel.stages_per_rank 2": ["stages_per_rank = 2", "1f1b has 1 stage"],
    "--parallel.tp 2 --data.seq_len 33": ["data.seq_len = 33", "parallel.tp = 2"],
    "--engine.attention flash": ["engine.attention = flash", "train.dtype = bf16", "fp32", "auto"],
    "--engine.attention flash --train.dtype bf16 --engine.device cpu": [
        "engine.attention = flash", "engine.device = cpu", "auto",
    ],
}  # fmt: skip


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_impossible_setting_is_refused_with_value_and_way_out(refused, words):
    message = refused(*words.split())
    assert all(part in message for part in IMPOSSIBLE[words]), message


def test_every_problem_is_told_at_once(refused):
    message = refused("--train.steps", "0", "--optim.lr", "-1")
    assert all(key in message for key in ("train.steps = 0", "optim.lr = -1"))
    message = refused("--model.kv_heads", "3", "--data.valid_fraction", "1")
    assert all(key in message for key in ("model.kv_heads = 3", "data.valid_fraction = 1"))


def test_defaults_are_possible():
    check(Config())
    check_batch(Config(), dp=8)


def test_batch_must_divide_over_ranks():
    config = Config(train=TrainConfig(global_batch=12, micro_batch=2))
    check_batch(config, dp=3)
    with pytest.raises(ValueError, match=r"global_batch = 12 .* 2 \* 4 = 8: change one"):
        check_batch(config, dp=4)


def test_bad_overrides_are_found_before_anything_starts(tmp_path):
    path = tmp_path / "overrides.json"
    path.write_text(json.dumps({"train_batch_size": 8}))
    config = replace(Config(), engine=EngineConfig(deepspeed_overrides=str(path)))
    check(config)  # a saved configuration stays readable where the file does not matter
    with pytest.raises(ValueError, match=r"overrides\.json sets train_batch_size"):
        check_batch(config, dp=1)
