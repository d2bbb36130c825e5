"""The degrees table: true, short and readable."""

import re
from dataclasses import replace

import pytest
import torch

from megatron_ngpt.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from megatron_ngpt.estimate.table import degrees_table, device_notes, ranks_of, size
from megatron_ngpt.mesh.degrees import Degrees

CONFIG = Config(
    model=ModelConfig(width=1280, layers=36, heads=20, vocab_size=32000),
    data=DataConfig(seq_len=4096),
    train=TrainConfig(global_batch=512, micro_batch=2, dtype="bf16"),
)


def table(world_size: int, **parallel) -> list[str]:
    config = replace(CONFIG, parallel=ParallelConfig(**parallel))
    return degrees_table(config, Degrees.of(config.parallel, world_size)).splitlines()


def test_alone():
    lines = table(1)
    assert lines[0] == (
        "ngpt 1,026.2 M parameters, bf16, ZeRO 1, 1 ranks = pp 1 x dp 1 x cp 1 x tp 1"
    )
    assert lines[1].startswith("pp 0        rank 0: embedding + layers 0-35 + head; 1,026.2 M")
    assert [line.split()[0] for line in lines] == ["ngpt", "pp", "memory", "batch", "note"]
    alone = "dp = 1: ZeRO 1 has no ranks to shard over: the step goes without DeepSpeed"
    assert lines[-1] == f"note        {alone}"


def test_who_is_where():
    lines = table(64, tp=4, pp=4)
    assert lines[1] == "tp groups   16 of 4 ranks, the first: 0, 1, 2, 3"
    assert lines[2] == "dp groups   16 of 4 ranks, the first: 0, 4, 8, 12"
    stages = [line.split(";")[0] for line in lines[3:7]]
    assert stages == [
        "pp 0        ranks 0-15: embedding + layers 0-9",
        "pp 1        ranks 16-31: layers 10-18",
        "pp 2        ranks 32-47: layers 19-27",
        "pp 3        ranks 48-63: layers 28-35 + head",
    ]
    assert lines[8] == (
        "batch       512 sequences of 4096 tokens = 2,097,152; a rank: 64 micro-batches of 2"
    )
    assert re.match(r"sends       dp [\d.]+ .iB, tp [\d.]+ .iB, pp [\d.]+ .iB a rank", lines[9])
    assert "32000 is padded to 32256" in lines[-1]


def test_as_the_mesh_places_them():
    """The first groups are those of rank 0 in the arithmetic of the mesh."""
    degrees = Degrees(pp=2, dp=3, cp=1, tp=2)
    at = [degrees.coordinates(rank) for rank in range(12)]
    for axis in ("tp", "dp"):
        others = {"pp", "dp", "tp"} - {axis}
        group = [rank for rank in range(12) if all(at[rank][o] == 0 for o in others)]
        lines = table(12, pp=2, tp=2)
        found = next(line for line in lines if line.startswith(f"{axis} groups"))
        assert found.endswith(f"the first: {', '.join(map(str, group))}")


@pytest.mark.parametrize(
    ("parallel", "world_size"),
    [({}, 512), ({"pp": 36}, 72), ({"pp": 12, "tp": 4, "schedule": "interleaved"}, 96)],
)
def test_short(parallel, world_size):
    lines = table(world_size, **parallel)
    assert len(lines) <= 15
    assert max(map(len, lines)) < 160


def test_several_stages_on_a_rank():
    line = next(line for line in table(8, pp=4, schedule="zbv") if line.startswith("pp 0"))
    assert re.search(r"embedding \+ layers 0-\d \| layers \d+-35 \+ head", line)


def test_numbers_in_readable_units():
    assert size(3 << 30) == "3.00 GiB"
    assert size(5 << 19) == "2.5 MiB"
    assert ranks_of([0, 1, 2, 3]) == "0, 1, 2, 3"
    assert ranks_of(range(0, 64, 8)) == "0, 8 ... 56"


def test_a_gpu_that_is_too_small_is_told(monkeypatch):
    card = type("Card", (), {"total_memory": 10 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    degrees = Degrees.of(CONFIG.parallel, 8)
    notes = list(device_notes(CONFIG, degrees, torch.device("cuda", 0)))
    assert notes[0].startswith("the estimate is above this GPU's 10.0 GiB")
    card.total_memory = 100 << 30
    notes = list(device_notes(CONFIG, degrees, torch.device("cuda", 0)))
    assert not any("above" in note for note in notes)


def test_who_computes_the_operations_is_told(monkeypatch):
    degrees, cpu = Degrees.of(CONFIG.parallel, 8), torch.device("cpu")
    plain = replace(CONFIG, engine=replace(CONFIG.engine, ops="reference"))
    assert list(device_notes(plain, degrees, cpu))[-1] == "operations: reference"
    monkeypatch.setattr("megatron_ngpt.ops.fused.why_reference", lambda *_: "no compiler")
    told = list(device_notes(plain, degrees, cpu))[-1]
    assert told == "operations: reference, slower than need be: no compiler"


@pytest.mark.parametrize("units", [False, True])
def test_a_cpu_without_bf16_units_is_told(units, monkeypatch):
    monkeypatch.setattr("megatron_ngpt.ops.linear.has_bf16_units", lambda: units)
    degrees, cpu = Degrees.of(CONFIG.parallel, 8), torch.device("cpu")
    low = replace(CONFIG, train=replace(CONFIG.train, dtype="bf16"))
    low = replace(low, engine=replace(low.engine, ops="reference"))
    assert any("fp32" in note for note in device_notes(low, degrees, cpu)) != units
