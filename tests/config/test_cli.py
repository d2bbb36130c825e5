import dataclasses

import pytest

from megatron_ngpt.config import (
    Config,
    CorpusConfig,
    ModelConfig,
    load_config,
    parse_config,
    save_config,
)
from megatron_ngpt.config.cli import parser

# the names other people's scripts rely on
PROMISED = {
    "model": "width layers heads kv_heads ffn_width vocab_size",
    "parallel": "tp pp cp",
    "optim": "lr min_lr warmup_steps betas weight_decay grad_clip zero_stage schedule",
    "data": "train valid tokenizer seq_len",
    "train": "steps global_batch micro_batch seed dtype",
    "checkpoint": "dir every keep",
    "eval": "every steps",
    "logging": "dir",
    "engine": "deepspeed_overrides",
}


def flatten(section, at=""):
    """Dotted names of all fields below a dataclass, and their values."""
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), at + field.name
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


@pytest.mark.parametrize("name", [f"{s}.{n}" for s in PROMISED for n in PROMISED[s].split()])
def test_promised_name_is_an_option(name):
    assert name in dict(flatten(Config()))
    assert f"--{name}" in parser()._option_string_actions


def test_every_field_has_its_docstring_in_help():
    help_text = " ".join(parser().format_help().split())
    options = parser()._option_string_actions
    for name, _ in flatten(Config()):
        words = options[f"--{name}"].help
        assert words, name
        assert f"--{name} " in help_text


def test_help_explains_with_the_words_of_the_source(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Sequences per step, over all ranks." in told
    assert "Effective value at the start." in told
    assert "Degrees of the mesh." in told


def test_no_words_give_the_defaults_of_the_classes():
    assert parse_config([]) == Config()


def test_derived_values_follow_the_shape_asked_for():
    asked = parse_config(["--model.width", "64", "--model.heads", "4", "--model.s_z.init", "2"])
    model = asked.model
    assert model == ModelConfig(width=64, heads=4, s_z=dataclasses.replace(model.s_z, init=2.0))
    assert (model.kv_heads, model.head_dim, model.ffn_width, model.init_std) == (4, 16, 256, 0.125)
    assert [s.scale for s in (model.alpha_attention, model.alpha_mlp, model.s_qk)] == [0.125] * 3
    assert (model.s_z.init, model.s_z.scale, model.s_uv.scale) == (2.0, 0.125, 1.0)


def test_architecture_decides_the_initial_deviation():
    assert parse_config(["--model.architecture", "gpt"]).model.init_std == 0.02


def test_later_words_win_over_yaml_and_earlier_lose(yaml_file):
    path = yaml_file("train:\n  steps: 7\n  seed: 3\noptim:\n  betas: [0.8, 0.9]\n")
    assert load_config(path, "--train.steps", "9").train.steps == 9
    assert load_config(path, "--train.steps", "9").train.seed == 3
    assert load_config(path).optim.betas == (0.8, 0.9)
    assert parse_config(["--train.steps", "9", "--config", path]).train.steps == 7


def test_two_files_merge_key_by_key(yaml_file, tmp_path):
    second = tmp_path / "second.yaml"
    second.write_text("train:\n  seed: 5\n")
    first = yaml_file("train:\n  steps: 7\n  seed: 3\n")
    train = parse_config(["--config", first, "--config", str(second)]).train
    assert (train.steps, train.seed) == (7, 5)


CHANGED = [
    [],
    ["--model.architecture", "gpt", "--model.width", "48", "--model.heads", "6"],
    ["--model.kv_heads", "2", "--model.head_dim", "10", "--model.s_qk.init", "1.5"],
    ["--optim.betas", "[0.9,0.999]", "--optim.lr", "1e-4", "--optim.schedule", "wsd"],
    ["--train.dtype", "bf16", "--train.compile", "true", "--optim.zero_stage", "3"],
    ["--logging.dir", "a b: c", "--data.train", "#1"],
    ["--data.train", "[{prefix: a, weight: 0.7, epochs: 2}, {prefix: b, weight: 0.3, name: c}]"],
    ["--data.stages", "[{tokens: 9, train: a}, {tokens: 10, train: [{prefix: b}]}]"],
]


@pytest.mark.parametrize("words", CHANGED)
def test_saved_configuration_loads_equal(words, tmp_path):
    config = parse_config(words)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("words", CHANGED)
def test_printed_configuration_loads_equal(words, capsys, yaml_file):
    with pytest.raises(SystemExit) as ended:
        parse_config([*words, "--print_config"])
    assert ended.value.code == 0
    assert load_config(yaml_file(capsys.readouterr().out)) == parse_config(words)


def test_a_blend_is_a_list_in_yaml(yaml_file):
    text = "data:\n  train:\n    - {prefix: x/a, weight: 2}\n    - prefix: b\n      epochs: 3\n"
    blend = (CorpusConfig(prefix="x/a", weight=2.0), CorpusConfig(prefix="b", epochs=3))
    assert load_config(yaml_file(text)).data.train == blend
    assert [corpus.name for corpus in blend] == ["a", "b"]


def test_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.steps = 3
    with pytest.raises(TypeError):
        ModelConfig(64)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train.step", "3"], ["--train.step 3", "did you mean --train.steps?"]),
        (["--trian.steps=3"], ["--trian.steps", "did you mean --train.steps?"]),
        (["--lr", "3"], ["--lr", "did you mean --optim.lr?"]),
        (["--steps", "3"], ["--train.steps or --eval.steps"]),
        (["--model.s_z.inti", "1"], ["did you mean --model.s_z.init?"]),
        (["--qqqqqqqqq", "3"], ["--qqqqqqqqq"]),
        (["stray"], ["stray"]),
        (["--train.steps"], ["--train.steps", "expected one argument"]),
        (["--train.steps", "many"], ["train.steps", "int", "many"]),
        (["--train.steps", "1.5"], ["train.steps", "int", "1.5"]),
        (["--train.compile", "maybe"], ["train.compile", "bool", "maybe"]),
        (["--train.dtype", "fp8"], ["train.dtype", "fp32", "bf16", "fp8"]),
        (["--optim.zero_stage", "4"], ["optim.zero_stage", "0, 1, 2, 3", "4"]),
        (["--optim.betas", "[0.9]"], ["optim.betas", "2 elements", "0.9"]),
        (["--config", "missing.yaml"], ["missing.yaml"]),
    ],
)
def test_wrong_words_are_refused_by_name(refused, words, says):
    message = refused(*words)
    assert all(part in message for part in says), message


def test_no_hint_for_words_that_resemble_nothing(refused):
    assert "did you mean" not in refused("--qqqqqqqqq", "3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train:\n  step: 7\n", ["train", "step", "did you mean --train.steps?"]),
        ("trian:\n  steps: 7\n", ["trian.steps", "did you mean --train.steps?"]),
        ("model:\n  s_z:\n    inti: 1\n", ["s_z.inti", "did you mean --model.s_z.init?"]),
        ("train:\n  steps: many\n", ["train.steps", "int", "many"]),
        ("train:\noptim:\n  lr: 1e-3\n", ["train", "section", "train.FIELD"]),
        ("train: 3\n", ["train = 3", "section", "train.FIELD"]),
        ("model:\n  s_z: 3\n", ["model.s_z = 3", "section", "model.s_z.FIELD"]),
        ("train:\n  steps:\n", ["train.steps", "no value", "leave the line out"]),
        ("train: [\n", ["parsing"]),
    ],
)
def test_wrong_yaml_is_refused_by_name(refused, yaml_file, text, says):
    message = refused("--config", yaml_file(text))
    assert all(part in message for part in says), message
