"""Safetensors files written and read piece by piece, against the library's own functions."""

import resource
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ngpt.engine.checkpoint import files
from megatron_ngpt.run.durable import DamagedCheckpoint

DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int64)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {
        f"{dtype}@{shape}".replace("torch.", ""): torch.randint(
            0, 200, shape, generator=generator
        ).to(dtype)
        for dtype in DTYPES
        for shape in ((1,), (37,), (5, 7), (64, 3), (1, 50))
    }
    wide = torch.randn(40, 30, generator=generator)
    return made | {"columns": wide[:, 4:11], "turned": wide.t(), "none": torch.empty(0, 3)}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """So that every tensor is several pieces, some cut inside a row."""
    monkeypatch.setattr(files, "CHUNK", 24)
    monkeypatch.setattr(files, "_MOST", 40)


def test_the_library_reads_what_is_written(tmp_path):
    path, wanted = tmp_path / "a.safetensors", tensors()
    crc32 = files.write(path, wanted)
    assert crc32 == zlib.crc32(path.read_bytes())
    found = load_file(path)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        assert torch.equal(found[name], values), name


def test_what_the_library_writes_is_read_window_by_window(tmp_path):
    path, wanted = tmp_path / "a.safetensors", tensors()
    save_file({name: values.contiguous() for name, values in wanted.items()}, path)
    with files.Stored(path) as stored:
        for name, values in wanted.items():
            for window in _windows(values.shape):
                expected = values[window]
                for into in _places(expected):
                    stored.read(name, [part.start for part in window], into)
                    assert torch.equal(into, expected.to(into.dtype)), (name, window)


def _windows(shape: torch.Size) -> list[tuple[slice, ...]]:
    whole = tuple(slice(0, size) for size in shape)
    inner = tuple(slice(size // 3, size - size // 4) for size in shape)
    rows = (slice(shape[0] // 2, shape[0]), *whole[1:])
    return [whole, inner, rows]


def _places(like: torch.Tensor) -> list[torch.Tensor]:
    """Of its own memory, a part of something wider, of another dtype."""
    own = torch.empty(like.shape, dtype=like.dtype)
    wider = torch.empty(*(size + 3 for size in like.shape), dtype=like.dtype)
    part = wider[tuple(slice(1, 1 + size) for size in like.shape)]
    return [own, part, torch.empty(like.shape, dtype=torch.float64)]


@pytest.mark.parametrize("keep", [4, 30, -1])
def test_a_file_cut_off_is_damaged(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    files.write(path, {"x": torch.ones(9)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedCheckpoint, match=str(path)), files.Stored(path) as stored:
        stored.read("x", [0], torch.empty(9))


def test_memory_beside_the_state_is_a_few_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1 << 20)
    monkeypatch.setattr(files, "_MOST", 1 << 30)
    values, into = torch.ones(1 << 14, 1 << 12), torch.zeros(1 << 14, 1 << 12)  # 256 MB each
    path = tmp_path / "large.safetensors"
    files.write(tmp_path / "warm.safetensors", {"x": values[:64]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files.write(path, {"x": values})
    with files.Stored(path) as stored:
        stored.read("x", [0, 0], into)
        stored.read("x", [0, 1], into[:, 1:])
    assert torch.equal(into, values)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # KiB; serialising the file would take 256 MiB
