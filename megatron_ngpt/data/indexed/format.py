"""Byte layout of a .bin/.idx pair, as megatron-core's IndexedDatasetBuilder writes it.

Everything is little-endian. With S sequences in D documents the .idx holds

    header           34 bytes: magic, u64 version, u8 dtype code, u64 S, u64 D + 1
    lengths          i32[S]: tokens of each sequence
    pointers         i64[S]: where each sequence starts in the .bin, in bytes
    document index   i64[D + 1]: first sequence of each document; the last entry is S

and the .bin holds the tokens of all sequences, one after another, and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
"""Of ``--data-impl lazy`` and ``cached``, which Megatron-DeepSpeed and GPT-NeoX still write."""

VERSION = 1
LENGTH = np.dtype("<i4")
OFFSET = np.dtype("<i8")
# Codes 6 and 7 are float64 and float32, the other way round in Megatron-DeepSpeed and GPT-NeoX; the
# format allows them and token ids never are.
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_LEGACY = (
    "it was made with --data-impl lazy or cached, which nothing reads by memory map: make it anew "
    "from the text with tools/preprocess_data.py, or with --data-impl mmap of the tool that made it"
)
_LAYOUT = struct.Struct("<9sQBQQ")
HEADER_SIZE = _LAYOUT.size


@dataclass(frozen=True)
class Header:
    """The first 34 bytes of an .idx, and the sizes that follow from them."""

    dtype: np.dtype
    """Type of one token in the .bin."""

    sequences: int
    """S, number of sequences."""

    documents: int
    """D, number of documents."""

    @property
    def pointers_offset(self) -> int:
        """Byte of the .idx at which the pointers start."""
        return HEADER_SIZE + self.sequences * LENGTH.itemsize

    @property
    def document_index_offset(self) -> int:
        """Byte of the .idx at which the document index starts."""
        return self.pointers_offset + self.sequences * OFFSET.itemsize

    @property
    def idx_size(self) -> int:
        """Bytes in the whole .idx."""
        return self.document_index_offset + (self.documents + 1) * OFFSET.itemsize

    def pack(self) -> bytes:
        """The 34 bytes."""
        code = dtype_code(self.dtype)
        return _LAYOUT.pack(MAGIC, VERSION, code, self.sequences, self.documents + 1)


def read_header(path: Path) -> Header:
    """Read and check the header of an .idx file.

    Raises:
        ValueError: when it is too short, no Megatron index, of another version, of a dtype that
            holds no token ids, or of a size that its own counts contradict.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_SIZE)
    if len(head) < HEADER_SIZE:
        raise corrupt(path, f"a header of {HEADER_SIZE} bytes", f"a file of {len(head)}")
    magic, version, code, sequences, document_index_length = _LAYOUT.unpack(head)
    if magic.startswith(LEGACY_MAGIC):
        raise corrupt(path, "a memory-mapped index", f"a legacy one ({LEGACY_MAGIC!r})", _LEGACY)
    if magic != MAGIC:
        raise corrupt(path, f"the magic bytes {MAGIC!r} of a Megatron index", repr(magic))
    if version != VERSION:
        raise corrupt(path, f"format version {VERSION}", f"version {version}")
    if code not in DTYPES:
        known = ", ".join(f"{code} {dtype.name}" for code, dtype in DTYPES.items())
        raise corrupt(path, f"an integer dtype code ({known})", f"code {code}")
    if document_index_length < 1:
        raise corrupt(path, "a document index of at least 1 entry", "one of 0")
    header = Header(DTYPES[code], sequences, document_index_length - 1)
    _check_size(path, header)
    return header


def corrupt(path: Path, expected: str, found: str, remedy: str = "") -> ValueError:
    """The error for a file that is not what it should be; the caller raises it."""
    remedy = remedy or "copy the pair again or make it anew with tools/preprocess_data.py"
    return ValueError(f"{path}: expected {expected}, found {found}; {remedy}")


def dtype_code(dtype: np.dtype) -> int:
    """The dtype's code in the header.

    Raises:
        ValueError: for a dtype the format has no code for, or that holds no token ids.
    """
    for code, known in DTYPES.items():
        if known == dtype:
            return code
    names = ", ".join(known.name for known in DTYPES.values())
    raise ValueError(f"token dtype {dtype} cannot be stored in an indexed dataset: use {names}")


def dtype_for(vocab_size: int) -> np.dtype:
    """The token dtype Megatron chooses: uint16 below 65,500 ids, else int32."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


def pair(prefix: str | Path) -> tuple[Path, Path]:
    """PREFIX.bin and PREFIX.idx; the prefix may itself contain dots."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx")


def _check_size(path: Path, header: Header) -> None:
    size = path.stat().st_size
    if size == header.idx_size:
        return
    counts = f"for {header.sequences} sequences in {header.documents} documents"
    remedy = ""
    if size == header.idx_size + header.sequences:
        remedy = "one byte more per sequence marks a multimodal pair, which is not supported"
    raise corrupt(path, f"{header.idx_size} bytes {counts}", f"{size}", remedy)
