"""Megatron's command lines as our configurations: nothing is dropped, and what is written loads."""

import re
import subprocess
import sys
from operator import attrgetter

import pytest

from megatron_ngpt.config import CorpusConfig, load_config
from megatron_ngpt.interop.megatron.arguments import from_words, from_yaml
from megatron_ngpt.interop.megatron.command import main
from megatron_ngpt.interop.megatron.reasons import reason
from megatron_ngpt.interop.megatron.shell import read_script
from megatron_ngpt.interop.megatron.translate import read_arguments, translate
from megatron_ngpt.interop.megatron.written import as_yaml
from tests.interop.megatron_scripts import CASES
from tests.jobs import REPOSITORY

SMALL = [
    *("pretrain_gpt.py", "--num-layers", "2", "--hidden-size", "64"),
    *("--num-attention-heads", "4"),
]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("DATA_PATH", "/corpora")
    monkeypatch.setenv("CHECKPOINT_SAVE_PATH", "/runs/a")


@pytest.mark.parametrize("name", CASES)
def test_public_command_line_in_small(name, tmp_path):
    """What is written loads, has the right values, and no argument is dropped without a word."""
    case = CASES[name]
    source, output = tmp_path / f"run{case.suffix}", tmp_path / "written.yaml"
    source.write_text(case.text)
    args = read_arguments(source, {"1": "runs/first", "job": "gpt"})
    found = translate(args, "gpt")
    output.write_text(as_yaml(found, source.name))
    config = load_config(output)
    for setting, value in case.settings.items():
        assert attrgetter(setting)(config) == value, setting
    for expected, lines in ((case.warnings, found.warnings), (case.notes, found.notes)):
        for text in expected:
            assert any(text in line for line in lines), text
    assert len(args.values) >= 14
    named = set(re.findall(r"--([A-Za-z][\w-]*)", output.read_text()))
    assert set(args.values) <= named


@pytest.mark.parametrize("name", ["gpt3", "llama3", "bloom"])
def test_the_same_for_ngpt(name, tmp_path, capsys):
    source, output = tmp_path / "run.sh", tmp_path / "written.yaml"
    source.write_text(CASES[name].text)
    code = main([str(source), "--set", "1=runs/first", "--output", str(output)])
    said = capsys.readouterr().err
    assert code == 0, said
    config = load_config(output)
    assert config.model.is_ngpt
    assert config.optim.weight_decay == config.optim.warmup_steps == 0
    assert "warning: --weight-decay: 0.1 there; 0 here" in said or name == "llama3"
    assert "warning: --normalization" in said


def test_blend_with_two_corpora_of_one_file_name(tmp_path):
    source = tmp_path / "run.sh"
    source.write_text(CASES["llm_jp"].text)
    found = translate(read_arguments(source), "gpt")
    first, second = (CorpusConfig(**one) for one in found.settings["data.train"])
    assert (first.prefix, first.weight) == ("data/bin/ja/wiki_text", 1442858730.0)
    assert first.name != second.name


def test_an_argument_that_nobody_knows_is_a_warning():
    found = translate(from_words([*SMALL, "--frobnicate", "3"]))
    assert any(text.startswith("--frobnicate: not known") for text in found.warnings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seq-length", "${LEN}"], "--seq-length = ${LEN}: nothing sets LEN; give it by --set"),
        (["--lr", "quick"], "--lr = quick: is no number"),
        (["--train-iters", "1.5"], "--train-iters = 1.5: must be a whole number"),
        (["--tensor-model-parallel-size", "$(nproc)"], "the output of a program is not known"),
        (["--zero-stage", "7"], "--zero-stage = 7: there are 0 to 3"),
        (["--num-attention-heads", "5"], "model.width = 64 is not a multiple of model.heads = 5"),
        (["--split", "0,1,0"], "--split = 0,1,0: leaves nothing to train on"),
        (["--micro-batch-size", "3", "--global-batch-size", "8"], "is no multiple of"),
    ],
)
def test_what_makes_no_configuration_is_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        translate(from_words([*SMALL, *words]))


def test_hybrid_models_are_refused():
    with pytest.raises(ValueError, match="--num-layers is not given"):
        translate(from_words(["--hidden-size", "8", "--hybrid-layer-pattern", "M*M-"]))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("A=1\nx.py --a $A --b \"$A b\" --c '$A'", "--a 1 --b|1 b --c|$A"),
        ('A="x y"\nx.py --a $A --b "$A"', "--a x y --b|x y"),
        ("A=(p 'q r')\nA+=(s)\nx.py --a ${A[@]}", "--a p q|r s"),
        ("N=3\nx.py --a $((N * 2 + 7 / 2)) --b $(($N%2))", "--a 9 --b 1"),
        ("x.py --a ${X:-1} --b ${Y:-${X:-2}}", "--a 1 --b 2"),
        ("x.py --a 1 # --b 2\n", "--a 1"),
        ("x.py --a '#1' --b a#b", "--a #1 --b a#b"),
        ("K=b\ncase $K in\n a) V=1;;\n b|c) V=2 ;;\n *) V=3\nesac\nx.py --a $V", "--a 2"),
        ("if [ 3 -gt 2 ] && [[ a != a ]]; then V=1; else V=2; fi\nx.py --a $V", "--a 2"),
        ("if [ 1 = 2 ]; then V=1\nelif [ 1 = 1 ]; then V=2\nelse V=3; fi\nx.py --a $V", "--a 2"),
        ("V=1\n[ 1 = 2 ] && V=2\n[ 1 = 2 ] || V=${V}4\nx.py --a $V", "--a 14"),
        ("cat <<X\nx.py --a --b --c\nX\nx.py --a 1", "--a 1"),
        ("x.py --a 1 > log 2>&1 &", "--a 1"),
        ("bash -c \"x.py --a 1 --b '2 3'\"", "-c x.py --a 1 --b|2 3"),
    ],
)
def test_shell_words_are_those_of_bash(script, words):
    found = read_script(script).words
    assert " ".join(found[1:]).split() == words.replace("|", " ").split()


def test_shell_agrees_with_bash(tmp_path):
    """The scripts of the cases, their command replaced by one that prints its words."""
    for name in ("gpt3", "mixtral", "fsdp", "llama2_deepspeed", "llm_jp"):
        text = CASES[name].text.replace("source ", ": ")
        show = tmp_path / "show"
        show.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        show.chmod(0o755)
        text = re.sub(
            r"^(torchrun|python -m torch.distributed.launch)", str(show), text, flags=re.M
        )
        run = subprocess.run(
            ["bash", "-c", text, "x", "runs/first"],
            capture_output=True,
            text=True,
            env={},
            check=True,
        )
        assert read_script(text, {"1": "runs/first"}).words[1:] == run.stdout.splitlines(), name


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("x.py --a 'b\n", "line 1: the ' that begins here is never closed"),
        ("\nA=(1 2\n", "line 2: the array that begins here has no closing bracket"),
        ("fi\nx.py --a", "line 1: fi without an if before it"),
        ("echo hello", "no command with --options"),
    ],
)
def test_scripts_that_are_none_are_refused(script, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_script(script)


def test_yaml_may_be_flat_and_in_sections():
    args = from_yaml("model:\n  num_layers: 2\n  add_bias_linear: false\nlr: 1.0e-3\nbf16: true\n")
    assert args.count("num-layers") == 2
    assert args.flag("disable-bias-linear")
    assert args.number("lr") == 1e-3
    assert args.flag("bf16")


@pytest.mark.parametrize("name", ["fp8-format", "moe-layer-freq", "kv-lora-rank", "mock-data"])
def test_what_changes_training_is_told_apart(name):
    assert reason(name)[0]
    assert not reason("log-throughput")[0]


def test_tool_refuses_to_overwrite_and_takes_plain_words(tmp_path):
    tool = [sys.executable, "tools/from_megatron_args.py"]
    output = tmp_path / "run.yaml"
    command = [*tool, "--output", str(output), "--", *SMALL, "--data-path", "data/x"]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert load_config(output).data.train == "data/x"
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr
