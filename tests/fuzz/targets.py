"""What reads files that others made: each target is handed the content of one."""

import contextlib
import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ngpt.config import parse_config
from megatron_ngpt.config.words import loaded
from megatron_ngpt.data.charsmap import read_rules
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.known import KnownCorpora
from megatron_ngpt.data.largest import largest_id
from megatron_ngpt.data.pairs.manifest import verify
from megatron_ngpt.data.provenance import Provenance
from megatron_ngpt.engine.checkpoint import files
from megatron_ngpt.engine.checkpoint.difference import differences
from megatron_ngpt.engine.checkpoint.index import check_files, checksum, read_index
from megatron_ngpt.engine.checkpoint.metadata import to_metadata
from megatron_ngpt.run import claim as claims
from megatron_ngpt.run.attempts import read_attempts
from megatron_ngpt.run.checkpoints import checkpoints, newest_here, read_progress
from megatron_ngpt.run.durable import DamagedCheckpoint
from megatron_ngpt.run.ledger import before, read_ledger
from megatron_ngpt.run.metrics import drop_after
from megatron_ngpt.run.requeue import decide
from tests.fuzz.mutate import bytes_like, json_like, lines_like
from tests.tools.commands import tool

OURS = (ValueError, FileNotFoundError, DamagedCheckpoint)
"""Errors that tell a user what is wrong with a file."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        seeds: content that is right.
        mutate: content that is nearly so.
        read: uses it in a folder of its own; raises nothing but OURS.
    """

    seeds: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], object]


def targets(folder: Path) -> dict[str, Target]:
    """All of them, each with files in a folder."""
    made = {}
    for make in (pair, flat, manifest, index, tensors, state, settings, records, owner, weights):
        place = folder / make.__name__
        place.mkdir()
        made[make.__name__] = make(place)
    made["tokenizer_json"] = tokenizer_json(folder)
    made["charsmap"] = Target([_charsmap()], bytes_like, read_rules)
    return made


def pair(folder: Path) -> Target:
    prefix = folder / "pair"
    with IndexedWriter(prefix, "uint16") as writer:
        for length in (3, 0, 5, 1):
            writer.add_document(range(length))
        writer.add_document(range(4), [1, 3])
    idx = Path(f"{prefix}.idx")

    def read(content: bytes) -> None:
        idx.write_bytes(content)
        dataset = IndexedDataset(prefix)
        for number in range(min(dataset.document_count, 10)):
            dataset.document(number)
        dataset.document_ends(0, dataset.token_count)
        dataset.verify()
        KnownCorpora().open("data.train", str(prefix))

    return Target([idx.read_bytes()], bytes_like, read)


def flat(folder: Path) -> Target:
    path = folder / "flat.bin"
    tokens = np.arange(300, dtype="<u2").tobytes()
    head = np.zeros(256, "<i4")
    head[:3] = 20240520, 1, 300

    def read(content: bytes) -> None:
        path.write_bytes(content)
        dataset = FlatDataset(path)
        dataset.tokens(0, dataset.token_count).max(initial=0)
        dataset.document_ends(0, dataset.token_count)

    return Target([tokens, head.tobytes() + tokens], bytes_like, read)


def manifest(folder: Path) -> Target:
    prefix = folder / "pair"
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add_document([1, 2, 3])
    content = {
        "documents": 1, "tokens": 3, "dtype": "uint16", "largest_id": 3,
        "crc32": {".bin": "0", ".idx": "0"}, "tokenizer": {"sha256": "ab", "file": "t.model",
        "vocab_size": 8}, "eod": {"id": 2, "appended": True}, "special_texts": 0,
        "options": {"special_text": "keep", "append_eod": True, "shares": [0.5], "name": "a"},
        "sources": [{"pair": "x", "crc32": {".bin": "1"}, "tokens": 3}],
    }  # fmt: skip
    path = Path(f"{prefix}.manifest.json")
    small = Path(f"{prefix}.largest.json")

    def read(given: bytes) -> None:
        path.write_bytes(given)
        dataset = IndexedDataset(prefix)
        if len(given) % 16 == 0:  # this one starts threads
            small.write_bytes(given)
            largest_id(dataset)
        if found := Provenance.of(dataset):
            found.overlaps(found)
        verify(prefix)

    return Target([json.dumps(content).encode()], json_like, read)


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
    size = int.from_bytes(whole[:8], "little")

    def mutate(content: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.3:
            return bytes_like(content, chance)
        header = json_like(whole[8 : 8 + size], chance)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with files.Stored(path) as stored:
            for name, entry in stored.entries.items():
                if len(entry.shape) in (1, 2) and np.prod(entry.shape, dtype=object) < 1 << 20:
                    stored.read(name, [0] * len(entry.shape), torch.empty(entry.shape))
            stored.read("a", [1, 1], torch.empty(2, 3))

    return Target([whole], mutate, read)


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


YAML = b"""model: {width: 64, heads: 4, rope_scaling: none}
data:
  train: [{prefix: a/b, weight: 2.5}, {prefix: "$HOME/x"}]
  seq_len: 4k
  stages: &s [{tokens: 1e6, train: c}]
train: {steps: 1_000, accept_changes: [train.seed]}
optim: {betas: [0.9, 0.95], lr: 1e-3}
"""


def settings(folder: Path) -> Target:
    path = folder / "config.yaml"
    ledger = folder / "ledger.jsonl"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        text = content.decode("utf-8", "replace")
        loaded(text)
        if len(content) % 100 == 0:  # all of it, which takes a thousand times as long
            whole(path)
        before(ledger.parent, folder, 1)

    def whole(path: Path) -> None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                parse_config(["--config", str(path)])
        except SystemExit as ended:
            if ended.code != 2:
                raise

    return Target([YAML, b"model:\n  width: 64\n<<: {a: 1}\n"], bytes_like, read)


def records(folder: Path) -> Target:
    """attempts.jsonl, metrics.jsonl and ledger.jsonl, and those who look at them."""
    lines = [
        {"number": 1, "started": 1.0, "job": "7", "ranks": 2, "checkpoints": str(folder)},
        {"number": 1, "resumed_at": 0, "first_step": 2.0},
        {"step": 1, "loss": 2.0, "tokens": 64, "tokens_per_second": 5.0, "step_seconds": 0.5},
        {"attempt": 1, "step": 0, "settings": {"train.seed": 1}, "topology": {"dp": 2}},
        {"number": 1, "ended": 9.0, "step": 1, "saved": 1, "reason": "signal", "detail": "x"},
        {"number": 2, "started": 11.0},
    ]
    status = tool("job_status")
    status.in_queue = lambda _: ("", "")  # asks SLURM, by a process of its own

    def read(content: bytes) -> None:
        for name in ("attempts", "metrics", "ledger"):
            (folder / f"{name}.jsonl").write_bytes(content)
        if attempts := read_attempts(folder):
            list(status.status(folder, attempts))
        decide(folder, "7", 0, 1, 3)
        read_ledger(folder)
        drop_after(folder / "metrics.jsonl", 1)

    return Target(["\n".join(map(json.dumps, lines)).encode()], lines_like, read)


def owner(folder: Path) -> Target:
    claims.create(folder, 1, claims.Claim(job="1", started="today"))
    path = claims.path_of(folder, 1)
    status = tool("job_status")

    def read(content: bytes) -> None:
        path.write_bytes(content)
        claims.read(folder)
        claims.owns(folder, 1, claims.Claim())
        status._owner(folder)

    return Target([path.read_bytes()], lines_like, read)


def weights(folder: Path) -> Target:
    """A Hugging Face folder: config.json here, and a file of weights of another model."""
    from megatron_ngpt.config import ModelConfig
    from megatron_ngpt.interop.hf_config import published_config
    from megatron_ngpt.interop.sources import open_source

    model = ModelConfig(width=8, layers=1, heads=2, ffn_width=8, vocab_size=11)
    content = {"model_type": "ngpt", "max_position_embeddings": 16, **published_config(model)}
    files.write(folder / "model.safetensors", {"x": torch.zeros(3)})

    def read(given: bytes) -> None:
        (folder / "config.json").write_bytes(given)
        open_source(folder)

    return Target([json.dumps(content).encode()], json_like, read)


def tokenizer_json(folder: Path) -> Target:
    from megatron_ngpt.data.hf_tokenizer import HFTokenizer

    place = folder / "tokenizer_json"
    place.mkdir()
    path = place / "tokenizer.json"
    vocabulary = {"a": 0, "b": 1, "ab": 2, "</s>": 3, "<unk>": 4}
    added = {"id": 3, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{**added, "normalized": False, "special": True}],
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"], "unk_token": "<unk>"},
    }  # fmt: skip

    def read(given: bytes) -> None:
        path.write_bytes(given)
        (place / "tokenizer_config.json").write_bytes(given[:200] or b"{}")
        tokenizer = HFTokenizer(path)
        tokenizer.decode(tokenizer.encode("abba </s>"))
        tokenizer.special_texts()
        tokenizer.take_special_as_text()

    return Target([json.dumps(content).encode()], json_like, read)


def _charsmap() -> bytes:
    """Of a sentencepiece model: a trie of one node, and replacements."""
    units = np.zeros(300, "<u4")
    units[0] = 1 << 10
    return struct.pack("<I", units.nbytes) + units.tobytes() + b"a\0b\0"
