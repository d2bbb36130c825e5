"""Reading and writing safetensors files without a second copy of what is in them.

The library's own ``save_file`` serialises a whole file in memory first, and its reader maps files,
whose pages count as the process's. Here values go from where they lie to the file and back, through
no more than one buffer, and a file's checksum is made of the same pass as its writing.
Format: https://huggingface.co/docs/safetensors - eight bytes with the length of a JSON header, the
header (name -> dtype, shape, first and last byte), then all values.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from megatron_ngpt.engine.checkpoint.header import read_header
from megatron_ngpt.run.durable import DamagedCheckpoint

CHUNK = 1 << 24
"""Bytes that are in memory beside the state: of one tensor on its way from a GPU, or to a box that
is no run of memory."""

_MOST = 1 << 30
"""Bytes asked for in one call; Linux gives no more than 2 GiB."""

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write a file, synced to disk; CRC-32 of its whole content.

    The checksum of one piece is made while the next is handed to the file system.
    """
    with path.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as thread:
        crc32 = thread.submit(int)
        for piece in chain([memoryview(_header(tensors))], *map(_pieces, tensors.values())):
            before = crc32.result()  # also keeps no more than two pieces alive
            crc32 = thread.submit(zlib.crc32, piece, before)
            _write_all(stream, piece)
        os.fsync(stream.fileno())
        return crc32.result()


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries, at = {}, 0
    for name, values in tensors.items():
        end = at + values.numel() * values.element_size()
        entries[name] = {
            "dtype": _NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(values: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in order; of memory that is not the CPU's or not one run, copies."""
    size = max(1, CHUNK // values.element_size())
    flat = values.detach().reshape(-1) if values.is_contiguous() else None
    if flat is None:  # boxes are whole rows of something wider
        for row in values.detach():
            yield from _pieces(row.contiguous())
        return
    for piece in flat.split(size):
        yield memoryview(piece.cpu().view(torch.uint8).numpy())


def _write_all(stream: FileIO, piece: memoryview) -> None:
    while piece:
        piece = piece[stream.write(piece) :]


class Stored:
    """A safetensors file that is open for reading.

    Raises:
        DamagedCheckpoint: it is no such file, or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.handle = path, os.open(path, os.O_RDONLY)
        try:
            self.entries = read_header(self.handle)
        except ValueError as err:
            os.close(self.handle)
            raise DamagedCheckpoint(f"{path}: {err}") from err

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *ignored: object) -> None:
        os.close(self.handle)

    def read(self, name: str, offsets: Sequence[int], into: Tensor) -> None:
        """Fill a tensor of one or two dimensions from the window of another that begins at offsets.

        Any dtype and device; whole rows of the same dtype go straight to where they belong.

        Raises:
            DamagedCheckpoint: there is no such tensor, or it has no such window.
        """
        entry = self.entries.get(name)
        if entry is None or not _inside(offsets, into.shape, entry.shape):
            raise DamagedCheckpoint(f"{self.path}: {name} is not what the index says")
        dtype = _DTYPES[entry.dtype]
        (row, column), width = (offsets[0], 0), 1
        if into.dim() == 2:
            (row, column), width = (offsets[0], offsets[1]), entry.shape[1]
        else:
            into = into[:, None]
        at = entry.start + row * width * dtype.itemsize
        straight = into.is_contiguous() and into.device.type == "cpu" and into.dtype == dtype
        if straight and into.shape[1] == width:
            return self._fill(into.view(-1), at)
        rows = max(1, CHUNK // (width * dtype.itemsize))
        for part in into.split(rows):
            read = torch.empty(part.shape[0], width, dtype=dtype)
            self._fill(read.view(-1), at)
            part.copy_(read[:, column : column + part.shape[1]])
            at += read.numel() * dtype.itemsize

    def _fill(self, flat: Tensor, at: int) -> None:
        """Bytes of the file from ``at`` on into a tensor on the CPU that is one run of memory."""
        left = flat.view(torch.uint8).numpy().data
        while left:
            count = os.preadv(self.handle, [left[:_MOST]], at)
            if not count:
                raise DamagedCheckpoint(f"{self.path} ends before its last tensor")
            left, at = left[count:], at + count


def _inside(offsets: Sequence[int], sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a window is inside of a tensor."""
    edges = zip(offsets, sizes, shape, strict=False)
    same = len(offsets) == len(sizes) == len(shape)
    return same and all(o >= 0 and o + s <= n for o, s, n in edges)
