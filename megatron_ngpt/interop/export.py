"""A checkpoint as a folder for Hugging Face transformers; one file is in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_ngpt.config import Config, last_trained, load_config
from megatron_ngpt.data.provenance import check_tokenizer
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer
from megatron_ngpt.engine.checkpoint.weights import load_weights
from megatron_ngpt.extras import require
from megatron_ngpt.interop import hf, hf_config
from megatron_ngpt.interop.card import model_card
from megatron_ngpt.model.spec import ParameterSpec, parameter_table
from megatron_ngpt.run.checkpoints import read_progress

CODE = (
    "configuration_ngpt.py", "modeling_ngpt.py",
    "attention_ngpt.py", "rotary_ngpt.py", "sphere_ngpt.py",
)  # fmt: skip
"""What an export carries for users who have transformers but not this package."""


def export(
    checkpoint: Path, output: Path, *, dtype: torch.dtype, file_bytes: int, tokenizer: str = ""
) -> int:
    """Write a folder that ``AutoModelForCausalLM.from_pretrained`` loads; returns parameters.

    Args:
        checkpoint: of any topology.
        output: folder to make; it must not hold anything yet.
        dtype: of the matrices; scaling vectors stay fp32.
        file_bytes: most bytes of weights in one file and in memory, a larger tensor apart.
        tokenizer: SentencePiece model; the run's own when empty, none if that is empty too.

    Raises:
        ValueError: the model has a setting that the Hugging Face model has not.
        FileExistsError: output is not empty.
        ModuleNotFoundError: transformers is not installed.
    """
    config = load_config(checkpoint / "config.yaml")
    config = last_trained(config, read_progress(checkpoint).tokens)
    described = hf_config.published_config(config.model)
    words = _open_tokenizer(tokenizer or config.data.tokenizer)
    if words is not None:
        check_tokenizer(config.data.tokenizer_sha256, words.path, "--tokenizer")
    if output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: choose another --output or empty it")
    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "config.json", _config_json(config, described, dtype, words))
    _write_json(output / "generation_config.json", _marks(words))
    for name in CODE:
        with resources.as_file(resources.files("megatron_ngpt") / "hf" / name) as source:
            shutil.copyfile(source, output / name)
    if words is not None:
        _write_tokenizer(words, config.data.seq_len, output)
    count = _write_weights(checkpoint, config, output, dtype, file_bytes)
    card = model_card(output.resolve().name, checkpoint, config, count)
    (output / "README.md").write_text(card, encoding="utf-8")
    return count


def _open_tokenizer(path: str) -> SentencePieceTokenizer | None:
    return SentencePieceTokenizer(path) if path else None


def _write_tokenizer(words: SentencePieceTokenizer, length: int, output: Path) -> None:
    converter = require("megatron_ngpt.hf.tokenizer", "hf", "exporting a tokenizer")
    fast = converter.fast_tokenizer(words)
    fast.model_max_length = length
    fast.save_pretrained(output)
    shutil.copyfile(words.path, output / "tokenizer.model")  # for tools that read SentencePiece


def _config_json(
    config: Config,
    described: dict[str, Any],
    dtype: torch.dtype,
    words: SentencePieceTokenizer | None,
) -> dict[str, Any]:
    """What transformers reads first; ``auto_map`` names the code that the folder carries."""
    code, model = (name.removesuffix(".py") for name in CODE[:2])
    return {
        "model_type": "ngpt",
        "architectures": ["NGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{code}.NGPTConfig",
            "AutoModel": f"{model}.NGPTModel",
            "AutoModelForCausalLM": f"{model}.NGPTForCausalLM",
        },
        **described,
        "max_position_embeddings": config.data.seq_len,
        "dtype": str(dtype).removeprefix("torch."),
        **_marks(words),
        "pad_token_id": None,  # rows of the embedding that transformers would zero
    }


def _marks(words: SentencePieceTokenizer | None) -> dict[str, Any]:
    """Ids with a meaning. Documents end with eos and begin after it, so it begins texts too."""
    eos = None if words is None else words.eos_id
    return {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}


def _write_weights(
    checkpoint: Path, config: Config, output: Path, dtype: torch.dtype, file_bytes: int
) -> int:
    table = parameter_table(config.model)
    files = list(_files(table, dtype, file_bytes))
    where: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        if len(files) == 1:
            file = "model.safetensors"
        held = load_weights(checkpoint, {name: table[name].shape for name in names})
        tensors = {
            hf.their_name(name): _stored(table[name], held.pop(name), dtype) for name in names
        }
        save_file(tensors, output / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    if len(files) > 1:
        total = sum(_bytes(spec, dtype) for spec in table.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(output / "model.safetensors.index.json", index)
    return sum(prod(spec.shape) for spec in table.values())


def _files(
    table: dict[str, ParameterSpec], dtype: torch.dtype, file_bytes: int
) -> Iterator[list[str]]:
    """Names per file, in the order of the table. Counted in fp32, which is what is read."""
    names: list[str] = []
    size = 0
    for name, spec in table.items():
        read = _bytes(spec, torch.float32)
        if names and size + read > file_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += read
    yield names


def _stored(spec: ParameterSpec, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = hf.to_theirs(spec.name, tensor)
    return tensor if spec.keeps_fp32 else tensor.to(dtype)


def _bytes(spec: ParameterSpec, dtype: torch.dtype) -> int:
    return prod(spec.shape) * (torch.float32 if spec.keeps_fp32 else dtype).itemsize


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
