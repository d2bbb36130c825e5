"""Readers of corpora, their manifests, texts and tokenizers."""

import io
import json
import struct
from pathlib import Path

import numpy as np

from megatron_ngpt.data.charsmap import read_rules
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.hf_tokenizer import HFTokenizer
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.known import KnownCorpora
from megatron_ngpt.data.largest import largest_id
from megatron_ngpt.data.pairs.manifest import verify
from megatron_ngpt.data.provenance import Provenance
from megatron_ngpt.data.sources.jsonl import read_jsonl, texts_of
from megatron_ngpt.data.sources.long_json import LongLine
from megatron_ngpt.data.sources.unusable import UnusableError
from tests.fuzz.mutate import bytes_like, json_like, lines_like
from tests.fuzz.target import Target


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


def lines(folder: Path) -> Target:
    """JSON Lines; a line read in parts has to give what it gives when read whole."""
    seeds = [
        {"text": "a", "title": "b\n\\"},
        {"text": '\u00e4\u20ac\U0001f600 " /', "n": [1, {"x": -1.5e3}], "title": ""},
        {"meta": {"text": "no"}, "text": "yes", "ok": True, "none": None},
    ]
    keys = ("text", "title")

    def read(content: bytes) -> None:
        list(read_jsonl(io.BytesIO(content), "x.jsonl", keys))
        file = io.BytesIO(content)
        while line := file.readline():
            for key in keys:
                assert _in_parts(line, key) == _whole(line, key)

    return Target([json.dumps(seed).encode() + b"\n" for seed in seeds], json_like, read)


def _whole(line: bytes, key: str) -> bytes | None:
    try:
        return texts_of(line, [key])[0]
    except UnusableError:
        return None


def _in_parts(line: bytes, key: str) -> bytes | None:
    try:
        return LongLine(line[:9], io.BytesIO(line[9:])).texts([key])[0]
    except UnusableError:
        return None


def tokenizer_json(folder: Path) -> Target:
    path, beside = folder / "tokenizer.json", folder / "tokenizer_config.json"
    vocabulary = {"a": 0, "b": 1, "ab": 2, "</s>": 3, "<unk>": 4}
    added = {"id": 3, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{**added, "normalized": False, "special": True}],
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b"], "unk_token": "<unk>"},
    }  # fmt: skip
    whole, config = json.dumps(content).encode(), b'{"eos_token": {"content": "</s>"}}'

    def read(given: bytes) -> None:
        its, _, theirs = given.partition(b"\n")
        path.write_bytes(its)
        beside.write_bytes(theirs)
        tokenizer = HFTokenizer(path)
        tokenizer.decode(tokenizer.encode("abba </s>"))
        tokenizer.special_texts()
        tokenizer.take_special_as_text()

    return Target([whole + b"\n" + config], lines_like, read)


def charsmap(_: Path) -> Target:
    """Of sentencepiece models: a small trie, and one of theirs."""
    units = np.zeros(300, "<u4")
    units[0] = 1 << 10
    small = struct.pack("<I", units.nbytes) + units.tobytes() + b"a\0b\0"
    return Target(
        [small, _trie({"a": 0, "bc": 2, "\u00e4": 0}) + b"x\0 y\0"], bytes_like, read_rules
    )


def _trie(values: dict[str, int]) -> bytes:
    """A double array, laid out by trying: every node's children at the first free places."""
    ways = {text.encode(): value for text, value in values.items()}
    units = {0: 0}

    def place(node: int, prefix: bytes) -> None:
        bytes_ = {key[len(prefix)] for key in ways if key.startswith(prefix) and key != prefix}
        labels = sorted(bytes_ | ({0} if prefix in ways else set()))
        offset = next(
            o for o in range(1, 1 << 16) if not {node ^ o ^ b for b in labels} & units.keys()
        )
        units[node] |= offset << 10 | (256 if prefix in ways else 0)
        units.update({node ^ offset ^ byte: byte for byte in labels})
        for byte in labels:
            child = node ^ offset ^ byte
            if byte:
                place(child, prefix + bytes([byte]))
            else:
                units[child] = 1 << 31 | ways[prefix]

    place(0, b"")
    array = np.zeros(max(units) + 1, "<u4")
    array[list(units)] = list(units.values())
    return struct.pack("<I", array.nbytes) + array.tobytes()
