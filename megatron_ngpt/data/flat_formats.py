"""What a file of flat ids is, by its first bytes and by what its numbers look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed.format import LEGACY_MAGIC, MAGIC, corrupt
from megatron_ngpt.data.pairs.manifest import manifest_path

HEADER = 256 * 4
"""Bytes before the ids in the files of llm.c and modded-nanogpt."""

_LLM_C = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""Magic and version of such files, and the type of their ids (karpathy/llm.c, dev/data)."""

_OTHERS = {
    b"\x93NUMPY": "numpy's .npy",
    b"PK\x03\x04": "a zip archive, such as .npz or a torch checkpoint",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\x89HDF": "HDF5",
    b"SQLite format": "SQLite",
    b"LITPKDS": "lit-gpt's packed dataset",
    b"GGUF": "GGUF",
    b"\x80\x02": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    MAGIC: "a Megatron index, the .idx of a pair",
    LEGACY_MAGIC: "a legacy Megatron index",
}
_REMEDY = (
    "write the ids alone, as numpy.asarray(ids, numpy.uint16).tofile(FILE), or make a pair with "
    "tools/preprocess_data.py"
)
_LOOKED_AT = 1 << 16
_LESS = 16
"""How many times smaller the largest upper half is than the largest lower one: of 32-bit ids up to
a vocabulary of 268 million, and never of text whose ids are 16 bits wide."""


@dataclass(frozen=True)
class Layout:
    """Where a flat file's ids are."""

    dtype: np.dtype
    start: int = 0
    """Bytes before the first."""


def layout_of(path: Path, content: np.ndarray) -> Layout:
    """The layout of a flat file: nanoGPT's, or that of llm.c and modded-nanogpt.

    Args:
        path: its path, for messages.
        content: uint8[bytes].

    Raises:
        ValueError: it is something else, or cannot be told from something else.
    """
    if found := _llm_c(path, content):
        return found
    _refuse_half_a_pair(path)
    head = content[:16].tobytes()
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise corrupt(path, "flat uint16 ids", name, _REMEDY)
    if content.size % 2:
        raise corrupt(path, "uint16 ids", f"{content.size} bytes, an odd number", _REMEDY)
    if content.size and _is_text(content[:_LOOKED_AT]):
        raise corrupt(path, "flat uint16 ids", "text", _REMEDY)
    if width := _wider(content):
        remedy = f"these look like ids of {8 * width} bits; {_REMEDY}"
        raise corrupt(path, "uint16 ids", "every second of them next to 0", remedy)
    return Layout(np.dtype("<u2"))


def _llm_c(path: Path, content: np.ndarray) -> Layout | None:
    if content.size < HEADER:
        return None
    magic, version, count = content[:12].view("<i4").tolist()
    known = {magic for magic, _ in _LLM_C}
    if magic not in known:
        return None
    if (magic, version) not in _LLM_C:
        raise corrupt(path, f"version 1 or 7 of llm.c's format (magic {magic})", f"{version}")
    dtype = np.dtype(_LLM_C[magic, version])
    size = HEADER + count * dtype.itemsize
    if content.size != size:
        found = f"{content.size}"
        raise corrupt(
            path, f"{size} bytes, as its header counts {count} ids", found, "copy it again"
        )
    return Layout(dtype, HEADER)


def _refuse_half_a_pair(path: Path) -> None:
    """A .bin whose .idx was lost: nothing in it says how wide its ids are."""
    prefix = str(path).removesuffix(".bin")
    made = manifest_path(prefix)
    if made.exists() or prefix.endswith(("_document", "_sentence")):
        told = f", as {made.name} says" if made.exists() else ", by its name"
        raise ValueError(
            f"{path} is half of a pair{told}, and {Path(prefix).name}.idx is not there: copy that, "
            "too; a flat file of uint16 ids needs another name"
        )


def _is_text(content: np.ndarray) -> bool:
    """Printable ASCII almost everywhere and no zeros, which the upper bytes of small ids are."""
    return content.size >= 64 and content.min() >= 9 and bool((content < 127).mean() > 0.9)


def _wider(content: np.ndarray) -> int:
    """Bytes of an id where ids look wider than 2, else 0: their upper parts are next to nothing."""
    ids = content[: content.size // 8 * 8].view("<u2").reshape(-1, 4)
    looked = ids[:: max(1, len(ids) // _LOOKED_AT)].astype(np.int64)
    if len(looked) < 4:
        return 0
    first, second, third, fourth = looked.max(0).tolist()
    if max(second, third, fourth) * _LESS < first:
        return 8
    return 4 if max(second, fourth) * _LESS < min(first, third) else 0
