"""tools/generate.py on a checkpoint that two ranks made from text."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer, train_tokenizer
from tests.distributed import run
from tests.jobs import REPOSITORY, train_on, words

SENTENCES = ["the cat sat on the mat", "a dog lay on the rug", "the dog saw the cat on the mat"]
RULE = "-" * 72


def _train(mesh, arguments: list[str]) -> None:
    train_on(mesh, arguments)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A run's folder, and beside it its tokenizer."""
    folder = tmp_path_factory.mktemp("job")
    model = folder / "toy.model"
    train_tokenizer(SENTENCES * 20, model, vocab_size=300)
    tokenizer = SentencePieceTokenizer(model)
    with IndexedWriter(folder / "toy", "uint16") as writer:
        for sentence in SENTENCES * 20:
            writer.add_document(np.array([*tokenizer.encode(sentence), tokenizer.eos_id]))
    sections = {
        "model": {"vocab_size": 320, "width": 48, "heads": 4, "ffn_width": 96},
        "data": {"tokenizer": model, "seq_len": 12, "valid_fraction": 0},
        "train": {"steps": 60},
        "optim": {"lr": 0.03},
        "checkpoint": {"every": 30},
    }
    run(2, _train, words(str(folder / "toy"), folder / "run", **sections))
    return folder


@pytest.fixture
def generate(job, monkeypatch, capsys):
    """Exit code, output and messages of the command, run in this process."""
    tool = _load_tool()

    def call(*arguments: str, checkpoint: Path = job / "run"):
        argv = ["generate.py", "--checkpoint", str(checkpoint), "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        code = tool.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def _load_tool():
    spec = importlib.util.spec_from_file_location("generate_tool", REPOSITORY / "tools/generate.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_as_a_user_runs_it(job):
    """What it was trained on comes back, and ends where the documents ended."""
    arguments = ["--checkpoint", job / "run", "--prompt", "the cat sat", "a dog"]
    argv = [sys.executable, "tools/generate.py", *arguments, "--temperature", "0"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, rest = done.stdout.split(f"{RULE}\n")
    assert first.strip() == "the cat sat on the mat"
    assert second.strip() == "a dog lay on the rug"
    assert rest == ""


def test_prompts_of_a_file_together_and_one_at_a_time(tmp_path, generate):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n\na\nthe dog saw\n", encoding="utf-8")
    words = ("--prompt", "the dog", "--prompt_file", str(prompts), "--seed", "5")
    code, together, _ = generate(*words)
    assert code == 0
    assert together.count(RULE) == 4
    assert generate(*words, "--batch", "1") == (0, together, "")
    assert generate(*words, "--batch", "3") == (0, together, "")


def test_a_run_its_checkpoints_and_one_of_them(job, generate):
    places = [job / "run", job / "run/checkpoints", job / "run/checkpoints/step_00000060"]
    said = [generate("--prompt", "the", checkpoint=place) for place in places]
    assert said[0] == said[1] == said[2]
    older = job / "run/checkpoints/step_00000030"
    assert generate("--prompt", "the", checkpoint=older) != said[0]


def test_options(generate):
    prompt = ["--prompt", "the", "the", "--temperature", "3"]
    code, out, err = generate(*prompt, "--seed", "1")
    assert (code, err) == (0, "")
    one, other, _ = out.split(RULE)
    assert one.strip() != other.strip(), "the same prompt twice gives two texts"
    assert generate(*prompt, "--seed", "1") == (code, out, err)
    assert generate(*prompt, "--seed", "2") != (code, out, err)
    _, short, _ = generate(*prompt, "--seed", "1", "--length", "2")
    assert one.startswith(short.split(RULE)[0].strip()[:-1])
    assert len(short) < len(out)
    greedy = generate("--prompt", "the", "--temperature", "0")
    assert generate("--prompt", "the", "--top-p", "1e-9", "--temperature", "3") == greedy


@pytest.fixture
def broken(job, tmp_path):
    """A copy of the newest checkpoint, to be damaged."""
    return Path(shutil.copytree(job / "run/checkpoints/step_00000060", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt has no tokens"),
        ([], "there is no prompt"),
        (["--prompt", "x", "--prompt_file", "/nowhere.txt"], "/nowhere.txt"),
        (["--prompt", "x", "--batch", "0"], "--batch 0"),
        (["--prompt", "x", "--tokenizer", "/nowhere.model"], "tokenizer '/nowhere.model'"),
        (["--prompt", "x", "--top-p", "2"], "top_p = 2.0"),
    ],
)
def test_refused(generate, arguments, message):
    code, out, err = generate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("generate.py: ")
    assert message in err


def test_no_checkpoint(generate, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        code, _, err = generate("--prompt", "x", checkpoint=place)
        assert code == 2
        assert err == f"generate.py: {place}: there is no complete checkpoint in it\n"


def test_a_damaged_checkpoint(generate, broken):
    data = next(broken.glob("*.safetensors"))
    data.write_bytes(data.read_bytes()[:-1])
    code, _, err = generate("--prompt", "x", checkpoint=broken)
    assert code == 2
    assert f"{data} has " in err
    data.unlink()
    assert generate("--prompt", "x", checkpoint=broken)[::2] == (
        2,
        f"generate.py: {data} is missing\n",
    )


def test_a_run_that_names_no_tokenizer(job, generate, broken):
    config = broken / "config.yaml"
    config.write_text(config.read_text().replace(str(job / "toy.model"), "''"))
    code, _, err = generate("--prompt", "the cat", checkpoint=broken)
    assert code == 2
    assert "--tokenizer is needed" in err


def test_a_tokenizer_with_more_ids_than_the_model(job, generate, tmp_path):
    larger = tmp_path / "larger.model"
    texts = ["".join(chr(0x4E00 + n) for n in range(400))]
    train_tokenizer(texts, larger, vocab_size=700, character_coverage=1.0)
    code, _, err = generate("--prompt", texts[0], "--tokenizer", str(larger))
    assert code == 2
    assert "but the model knows 320 ids" in err
