"""Readers of checkpoints and of models that others published."""

import contextlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.engine.checkpoint import files
from megatron_ngpt.engine.checkpoint.difference import differences
from megatron_ngpt.engine.checkpoint.index import check_files, checksum, read_index
from megatron_ngpt.engine.checkpoint.metadata import to_metadata
from megatron_ngpt.interop import hf
from megatron_ngpt.interop.hf_config import published_config
from megatron_ngpt.interop.sources import open_source
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.run.checkpoints import checkpoints, newest_here, read_progress
from tests.fuzz.mutate import bytes_like, json_like
from tests.fuzz.target import Target
from tests.tools.commands import tool


def _checkpoint(folder: Path) -> dict[str, Any]:
    """A whole checkpoint of one file; its index, without checksum."""
    folder.mkdir()
    values = {"w@0,0": torch.arange(12.0).view(3, 4), "b@0": torch.arange(4.0)}
    name = "rank_00000_0.safetensors"
    crc = files.write(folder / name, values)
    (folder / "state.json").write_text(json.dumps(STATE))
    boxes = {
        "master/w": {"offsets": [0, 0], "sizes": [3, 4], "file": name, "key": "w@0,0"},
        "master/b": {"offsets": [0], "sizes": [4], "file": name, "key": "b@0"},
    }
    return {
        "format": 1,
        "files": {name: {"size": (folder / name).stat().st_size, "crc32": crc}},
        "tensors": {
            n: {"dtype": "float32", "shape": b["sizes"], "boxes": [b]} for n, b in boxes.items()
        },
    }


STATE = {
    "step": 5, "tokens": 960, "record": {"loss": 1.5}, "saved_at": 1.0,
    "left_out": [[3, 9]], "losses": [1.5, 2.0],
    "topology": {"pp": 1, "dp": 2, "cp": 1, "tp": 1, "zero_stage": 1, "world_size": 2},
}  # fmt: skip


def index(folder: Path) -> Target:
    """The checksum is made right again, as whoever means harm would do."""
    checkpoint = folder / "step_00000005"
    content = _checkpoint(checkpoint)
    inspect = tool("inspect_checkpoint")

    def read(given: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            changed = json.loads(given)
            changed["crc32"] = checksum({n: v for n, v in changed.items() if n != "crc32"})
            given = json.dumps(changed).encode()
        (checkpoint / "index.json").write_bytes(given)
        found = read_index(checkpoint)
        for name in found["files"]:
            assert (checkpoint / name).parent == checkpoint, "a path that leaves its folder"
        list(inspect.describe(checkpoint, found))
        list(inspect.damage(checkpoint, found, verify=True))
        to_metadata(found)
        check_files(checkpoint, found["files"], found, checksums=True)
        list(differences(checkpoint, checkpoint))

    return Target([json.dumps(content).encode()], json_like, read)


def tensors(folder: Path) -> Target:
    path = folder / "x.safetensors"
    files.write(path, {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(5, dtype=torch.uint8)})
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with files.Stored(path) as stored:
            for name, entry in stored.entries.items():
                if len(entry.shape) in (1, 2) and np.prod(entry.shape, dtype=object) < 1 << 20:
                    stored.read(name, [0] * len(entry.shape), torch.empty(entry.shape))
            stored.read("a", [1, 1], torch.empty(2, 3))

    return Target([whole], _of_header(whole), read)


def state(folder: Path) -> Target:
    checkpoint = folder / "step_00000005"
    checkpoint.mkdir()
    inspect = tool("inspect_checkpoint")

    def read(content: bytes) -> None:
        (checkpoint / "state.json").write_bytes(content)
        (folder / "latest").write_bytes(content[:40])
        list(inspect._state(checkpoint))
        checkpoints(folder)
        newest_here(folder)
        read_progress(checkpoint)

    return Target([json.dumps(STATE).encode()], json_like, read)


def _published(folder: Path) -> Path:
    """The folder of a whole model as Hugging Face has it."""
    model = ModelConfig(width=8, layers=1, heads=2, ffn_width=8, vocab_size=11)
    content = {"model_type": "ngpt", "max_position_embeddings": 16, **published_config(model)}
    (folder / "config.json").write_text(json.dumps(content))
    values = {
        hf.their_name(name): hf.to_theirs(name, torch.ones(row.shape))
        for name, row in parameter_table(model).items()
    }
    save_file(values, folder / "model.safetensors")
    return folder


def _load_all(folder: Path) -> None:
    source = open_source(folder)
    for name in parameter_table(source.model):
        source.load(name)


def weights_config(folder: Path) -> Target:
    """config.json of a Hugging Face folder."""
    path = _published(folder) / "config.json"

    def read(given: bytes) -> None:
        path.write_bytes(given)
        _load_all(folder)

    return Target([path.read_bytes()], json_like, read)


def weights(folder: Path) -> Target:
    """Its weights."""
    path = _published(folder) / "model.safetensors"
    whole = path.read_bytes()

    def read(given: bytes) -> None:
        path.write_bytes(given)
        _load_all(folder)

    return Target([whole], _of_header(whole), read)


def _of_header(whole: bytes) -> Callable[[bytes, random.Random], bytes]:
    """Changes the header of a file of tensors, as JSON, and makes its length right again."""
    size = int.from_bytes(whole[:8], "little")

    def mutate(content: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            return bytes_like(content, chance)
        header = json_like(whole[8 : 8 + size], chance)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]

    return mutate
