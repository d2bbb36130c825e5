"""What an export holds."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from megatron_ngpt.config import StageConfig, load_config
from megatron_ngpt.interop import export as exporting
from megatron_ngpt.interop.export import export
from megatron_ngpt.interop.hf import our_name, to_ours
from megatron_ngpt.run.checkpoints import Progress
from tests.hf.conftest import KINDS, exported, sentencepiece

__all__ = ["exported", "sentencepiece"]


def tensors(folder):
    """Every tensor of every file, under our names and in our shapes."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            assert stored.metadata() == {"format": "pt"}
            for name in stored.keys():  # noqa: SIM118
                found[our_name(name)] = to_ours(stored.get_tensor(name))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_checkpoint_s_to_the_last_bit(exported, kind):
    made = exported(kind)
    found = tensors(made.folder)
    assert found.keys() == made.weights.keys()
    assert all(torch.equal(found[name], value) for name, value in made.weights.items())


def test_files_are_no_larger_than_asked_for_and_the_index_tells_where_everything_is(exported):
    folder = exported("default").folder
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in files}
    for path in files:
        with safe_open(path, "pt") as stored:
            names = list(stored.keys())
            size = sum(stored.get_tensor(name).nbytes for name in names)
        assert size <= 20_000 or len(names) == 1, path
        assert all(index["weight_map"][name] == path.name for name in names)


def test_no_more_than_one_file_is_in_memory(exported, tmp_path, monkeypatch):
    held = []
    load = exporting.load_weights

    def watched(checkpoint, shapes):
        weights = load(checkpoint, shapes)
        held.append(sum(tensor.nbytes for tensor in weights.values()))
        return weights

    monkeypatch.setattr(exporting, "load_weights", watched)
    checkpoint = exported("default").checkpoint
    export(checkpoint, tmp_path / "hf", dtype=torch.float32, file_bytes=40_000)
    assert len(held) > 1
    assert max(held) <= 40_000


def test_bf16_rounds_matrices_alone(exported, tmp_path):
    made = exported("default")
    export(made.checkpoint, tmp_path / "hf", dtype=torch.bfloat16, file_bytes=10**9)
    assert (tmp_path / "hf/model.safetensors").is_file()
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"
    for name, value in tensors(tmp_path / "hf").items():
        expected = made.weights[name]
        assert torch.equal(value, expected.bfloat16() if expected.dim() == 2 else expected), name


def test_what_else_is_in_the_folder(exported, sentencepiece):
    folder = exported("default").folder
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("ngpt", ["NGPTForCausalLM"])
    assert (config["eos_token_id"], config["max_position_embeddings"]) == (2, 64)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 2}
    assert (folder / "tokenizer.model").read_bytes() == sentencepiece.read_bytes()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| shape | width 24, 3 layers, 4 heads of 6 (4 for keys), swiglu 40 wide" in card


def test_the_card_says_what_kind_of_model_it_is(exported):
    card = (exported("gpt differential").folder / "README.md").read_text()
    assert "\nThe GPT (RMSNorm before every block) that nGPT is compared with, differential" in card


def test_a_folder_with_something_in_it_is_left_alone(exported, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty"):
        export(exported("default").checkpoint, tmp_path, dtype=torch.float32, file_bytes=10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_length_is_the_one_that_was_trained_last(exported, tmp_path, monkeypatch):
    """Steps of 64 tokens that become 128 long at token 512; saved right there, and a step later."""
    found = {}
    config = load_config(exported("default").checkpoint / "config.yaml")
    stage = StageConfig(tokens=512, seq_len=128)
    data = replace(config.data, stages=(stage,), shuffle_unit=128)
    config = replace(config, data=data, train=replace(config.train, global_batch=2, micro_batch=1))
    monkeypatch.setattr(exporting, "load_config", lambda _: config)
    for tokens in (512, 640):
        monkeypatch.setattr(exporting, "read_progress", lambda _, t=tokens: Progress(t // 128, t))
        folder = tmp_path / str(tokens)
        export(exported("default").checkpoint, folder, dtype=torch.float32, file_bytes=10**9)
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        published = json.loads((folder / "config.json").read_text())
        found[tokens] = [published["max_position_embeddings"], tokenizer["model_max_length"]]
        assert f"sequences of {found[tokens][0]} tokens" in (folder / "README.md").read_text()
    assert found == {512: [64, 64], 640: [128, 128]}
