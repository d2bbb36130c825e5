"""A run, a corpus and a tokenizer of different makes: refused by every tool that reads them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ngpt.config import Config, DataConfig, EngineConfig, ModelConfig
from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.pairs.manifest import write_manifest
from megatron_ngpt.data.tokenizer import train_tokenizer
from megatron_ngpt.interop.imported import write_checkpoint
from megatron_ngpt.interop.sources import Source
from megatron_ngpt.mesh.launch import Launch
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from tests.distributed import run
from tests.tools.commands import tool

EOD = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two tokenizers, a pair made with each, and a run trained on the first."""
    folder = tmp_path_factory.mktemp("two")
    for name, text in (("ours", "the cat sat on the mat"), ("theirs", "some other words")):
        model = folder / f"{name}.model"
        train_tokenizer([text] * 50, model, vocab_size=275)
        told = {"file": str(model), "sha256": sha256(model), "vocab_size": 275}
        with IndexedWriter(folder / name, "uint16", checksum=True) as writer:
            writer.add_document(np.array([*range(3, 40), EOD]))
        write_manifest(writer, {"tokenizer": told, "eod": {"id": EOD, "appended": True}})
    shape = ModelConfig(width=24, layers=1, heads=2, ffn_width=40, vocab_size=280)
    weights = NGPT(shape)
    initialise(weights, parameter_table(shape), seed=1)
    data = DataConfig(
        tokenizer=str(folder / "ours.model"), tokenizer_sha256=sha256(folder / "ours.model")
    )
    config = Config(model=shape, data=data, engine=EngineConfig(device="cpu"))
    tensors = {name: p.detach() for name, p in weights.named_parameters()}
    write_checkpoint(
        Source("a test", shape, tensors.__getitem__), config, folder / "run/checkpoints"
    )
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_generate(place, monkeypatch, capsys):
    def generate(tokenizer: str) -> tuple[int, str]:
        words = ["--prompt", "the cat", "--tokenizer", str(place / tokenizer), "--device", "cpu"]
        argv = ["generate.py", "--checkpoint", str(place / "run"), "--length", "2", *words]
        monkeypatch.setattr("sys.argv", argv)
        return tool("generate").main(), capsys.readouterr().err

    assert generate("ours.model") == (0, "")
    code, said = generate("theirs.model")
    assert code == 2
    assert "is not the tokenizer that made the corpora" in said


def _evaluated(mesh, folder: str) -> None:
    evaluate = tool("evaluate")
    evaluate.start = lambda *_: None  # there is a process group
    lengths = ["--checkpoint", f"{folder}/run", "--lengths", "16"]
    evaluate.main(Launch(), [*lengths, "--data", f"{folder}/ours"])
    foreign = [*lengths, "--data", f"{folder}/theirs"]
    with pytest.raises(ValueError, match=r"theirs was made with another tokenizer"):
        evaluate.main(Launch(), foreign)
    evaluate.main(Launch(), [*foreign, "--data.tokenizer_sha256", "any"])
    passkey = ["--passkey", "--tokenizer", f"{folder}/theirs.model"]
    with pytest.raises(ValueError, match="is not the tokenizer that made the corpora"):
        evaluate.main(Launch(), [*lengths, *passkey])


@torch.no_grad()
def test_evaluate(place):
    run(1, _evaluated, str(place))


def test_dataset_info(place, monkeypatch, capsys):
    def info(tokenizer: str) -> tuple[int, str]:
        words = ["--samples", "1", "--tokenizer-model", str(place / tokenizer)]
        monkeypatch.setattr("sys.argv", ["dataset_info.py", str(place / "ours"), *words])
        return tool("dataset_info").main(), capsys.readouterr().err

    assert info("ours.model") == (0, "")
    code, said = info("theirs.model")
    assert code == 1
    assert "--tokenizer-model = " in said
    assert "is not the tokenizer that made the corpora" in said
