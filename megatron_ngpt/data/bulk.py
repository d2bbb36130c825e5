"""Many documents to ids at once, by the fastest library that can. Sole home of gigatoken.

gigatoken is some 40 times faster, but its own reading of a ``.model`` is not sentencepiece's (seen
with 0.10): the letters ``</s>`` in a text become the control piece, white space other than spaces
is stripped from both ends, and characters are normalised grapheme by grapheme. So only its BPE is
used: control pieces are taken out of the model, and texts come to it normalised by ``normalize``.
No text is known on which that differs from sentencepiece. A ``tokenizer.json`` it reads as it is.
Every run compares a sample of texts with the library whose file it is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from megatron_ngpt.data.charsmap import read_rules
from megatron_ngpt.data.hf_tokenizer import HFTokenizer
from megatron_ngpt.data.normalize import TextNormalizer
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer
from megatron_ngpt.extras import require

EncoderName = Literal["auto", "gigatoken", "sentencepiece", "tokenizers"]
Tokenizer: TypeAlias = SentencePieceTokenizer | HFTokenizer
_SAMPLE_BYTES = 1 << 14
# Compared before anything is encoded: what the two libraries are known to treat differently.
_PROBES = (
    " two  spaces ",
    "\tdef f(x):\n\n    return x\r\n",
    "=" * 45,
    "a\0b\x01",
    "\u2581\u2581x\u2581",
    "e\u0301 \ufb01 \u00bd \u1100\u1161 \uff76\uff9e",
    "\u6f22\u5b57 \U0001f469\u200d\U0001f467",
    "\u0085\u00a0x\u3000\u0085",
)


class BulkEncoder(Protocol):
    """What encodes documents; one object may be used by several threads at once."""

    name: str
    """The library that does the work."""

    batch_bytes: int
    """Bytes of text per call that give full speed."""

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of UTF-8 documents, the same as ``SentencePieceTokenizer.encode`` gives.

        Returns:
            [tokens] the ids of all documents, one after another, and i64[documents] how many
            ids each has.
        """


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A SentencePiece model, or a Hugging Face ``tokenizer.json`` where the name ends in .json."""
    return HFTokenizer(path) if Path(path).suffix == ".json" else SentencePieceTokenizer(path)


def bulk_encoder(tokenizer: Tokenizer, name: EncoderName = "auto") -> tuple[BulkEncoder, str]:
    """The fastest encoder that gives the tokenizer's ids, and why it is not gigatoken, or "".

    Raises:
        ModuleNotFoundError: when gigatoken is asked for and not installed.
        ValueError: when an encoder is asked for that cannot do this tokenizer.
    """
    if name not in ("auto", "gigatoken", own := _library(tokenizer)):
        raise ValueError(
            f"--encoder {name} does not read {tokenizer.path.name}: tokenizer.json files are for "
            "tokenizers, .model files for sentencepiece, both for gigatoken; leave --encoder out"
        )
    if name == own:
        return _plain(tokenizer), "it was asked for"
    try:
        return GigatokenEncoder(tokenizer), ""
    except (ModuleNotFoundError, ValueError) as err:
        if name == "gigatoken":
            raise
        return _plain(tokenizer), str(err)


def _library(tokenizer: Tokenizer) -> EncoderName:
    """The library whose file it is, and whose ids count."""
    return "tokenizers" if isinstance(tokenizer, HFTokenizer) else "sentencepiece"


def _plain(tokenizer: Tokenizer) -> BulkEncoder:
    if isinstance(tokenizer, HFTokenizer):
        return TokenizersEncoder(tokenizer)
    return SentencePieceEncoder(tokenizer)


class SentencePieceEncoder:
    """Any SentencePiece model: 1 to 4 MB/s per thread."""

    name = "sentencepiece"
    # A call cannot be interrupted: about 0.2 s each.
    batch_bytes = 1 << 18

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self._encode = tokenizer.processor.encode

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See ``BulkEncoder``."""
        ids: list[list[int]] = self._encode(list(texts))
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths


class TokenizersEncoder:
    """Any ``tokenizer.json``; the library has threads of its own, one per core."""

    name = "tokenizers"
    batch_bytes = 1 << 20

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._encode = tokenizer.library.encode_batch_fast

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See ``BulkEncoder``."""
        encodings = self._encode([text.decode() for text in texts], add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.concatenate([np.empty(0, np.int32), *ids]), lengths


class GigatokenEncoder:
    """BPE models with byte fallback or on bytes: 50 to 100 MB/s per thread.

    Raises:
        ModuleNotFoundError: when gigatoken is not installed.
        ValueError: with the reason, when gigatoken cannot give this model's ids.
    """

    name = "gigatoken"
    # Its cache of words begins anew at every call.
    batch_bytes = 1 << 23

    def __init__(self, tokenizer: Tokenizer) -> None:
        gigatoken = require("gigatoken", "preprocess", "fast encoding")
        self._awkward = require("awkward", "preprocess", "fast encoding")
        self._reference = tokenizer
        # what gigatoken is handed of a batch
        self._normalize: Callable[[Sequence[bytes]], Sequence[bytes]] = list
        if isinstance(tokenizer, HFTokenizer):
            # marks become ids as the library does it, inside a text and beside spaces
            probes = [f"a{mark}b  {mark} c" for mark in tokenizer.marks()]
            description = json.loads(tokenizer.model)
            if tokenizer.library.encode_special_tokens:
                plain = tokenizer.special_texts()
                added = description["added_tokens"]
                description["added_tokens"] = [t for t in added if t["id"] not in plain]
            if description["model"].get("dropout"):
                raise ValueError("it drops merges at random")
        else:
            reserved = _reserved_pieces(tokenizer)
            probes, description = [*reserved], _describe(tokenizer, reserved)
            self._normalize = _take_normalizer(description, tokenizer).many
        try:
            self._bpe = gigatoken.Tokenizer.from_json(json.dumps(description))
        except Exception as err:  # nothing more specific; a panic of its own is a BaseException
            raise ValueError(f"gigatoken: {str(err).partition(chr(10))[0]}") from err
        probes += _PROBES
        ids, lengths = self._encode([probe.encode() for probe in probes])
        for probe, found in zip(probes, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
            self._compare(probe, found)

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See ``BulkEncoder``. Compares one document per call, or its beginning, as a sample.

        Raises:
            ValueError: when gigatoken and the tokenizer's own library differ on the sample.
        """
        ids, lengths = self._encode(texts)
        if texts:
            number = len(texts) // 2
            end = int(lengths[: number + 1].sum())
            sample, found = texts[number], ids[end - int(lengths[number]) : end]
            if len(sample) > _SAMPLE_BYTES:
                sample = sample[:_SAMPLE_BYTES].decode(errors="ignore").encode()
                found, _ = self._encode([sample])
            self._compare(sample.decode(), found)
        return ids, lengths

    def _encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        # Our threads each encode a batch; gigatoken's own would ignore their number.
        documents = self._bpe.encode_batch(self._normalize(texts), parallel=False)
        lengths = np.asarray(self._awkward.num(documents), np.int64)
        return np.asarray(self._awkward.flatten(documents)), lengths

    def _compare(self, text: str, found: np.ndarray) -> None:
        expected = self._reference.encode(text)
        if found.tolist() != expected:
            own = _library(self._reference)
            raise ValueError(
                f"gigatoken and {own} differ on a text that begins {text[:60]!r}: choose "
                f"--encoder {own}, and please report the tokenizer and the text"
            )


def _describe(tokenizer: SentencePieceTokenizer, reserved: set[str]) -> dict[str, Any]:
    """gigatoken's description of the model, without the pieces that no text may become."""
    loader = require("gigatoken._load.sentencepiece", "preprocess", "fast encoding")
    description: dict[str, Any] = json.loads(
        loader.sentencepiece_to_tokenizer_json(tokenizer.model)
    )
    pieces = range(tokenizer.vocab_size)
    if any(map(tokenizer.processor.is_unused, pieces)):
        raise ValueError("its unused pieces need sentencepiece's own splitting")
    if any(not token["special"] for token in description["added_tokens"]):
        raise ValueError("its user-defined pieces need sentencepiece's own matching")
    if any(len(piece) == 1 for piece in reserved):
        raise ValueError("a control piece of one character would be taken for the character")
    description["added_tokens"] = []
    model = description["model"]
    model["merges"] = [
        merge for merge in model["merges"] if reserved.isdisjoint((*merge, "".join(merge)))
    ]
    return description


def _take_normalizer(
    description: dict[str, Any], tokenizer: SentencePieceTokenizer
) -> TextNormalizer:
    """Move the normalisation out of the description; only the escaping of spaces stays there."""
    steps = description["normalizer"]["normalizers"]
    description["normalizer"]["normalizers"] = steps[-1:]
    kinds = {step["type"]: step for step in steps[:-1]}
    charsmap = kinds.get("Precompiled", {}).get("precompiled_charsmap", "")
    rules, apply = read_rules(base64.b64decode(charsmap)), tokenizer.character_normalizer()
    return TextNormalizer(rules, apply.normalize, "Strip" in kinds, "Prepend" in kinds)


def _reserved_pieces(tokenizer: SentencePieceTokenizer) -> set[str]:
    """Pieces that stand for no text of their own: control, unknown and byte pieces."""
    model = tokenizer.processor
    return {
        model.id_to_piece(i)
        for i in range(tokenizer.vocab_size)
        if model.is_control(i) or model.is_unknown(i) or model.is_byte(i)
    }
