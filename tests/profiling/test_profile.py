"""Where the profile puts the time of a step; never how much of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_ngpt.config import Config, DataConfig, ModelConfig, TrainConfig
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.profiling.limit import Attention, Products
from megatron_ngpt.profiling.ranges import STEP, named
from megatron_ngpt.profiling.rooms import by_room
from megatron_ngpt.profiling.traffic import least_bytes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIZES = {"width": 32, "layers": 2, "heads": 2, "vocab_size": 64}


def rooms_of(**model: object) -> dict[str, float]:
    config = ModelConfig(**{**SIZES, **model})
    net = NGPT(config)
    initialise(net, parameter_table(config), 0)
    tokens = torch.randint(64, (2, 16))
    original = NGPT.forward
    with named(), profile(activities=[ProfilerActivity.CPU]) as trace:
        net(tokens, tokens).backward()  # under no step: it counts only where its names say so
        with record_function(STEP):
            net(tokens, tokens).backward()
    assert NGPT.forward is original
    return by_room(trace.events(), on_gpu=False)


def test_every_operation_of_ngpt_has_a_room_forward_and_backward():
    found = rooms_of()
    operations = {"ResidualStep", "RotaryQKNorm", "SwiGLU", "loss"}
    both = operations | {f"{name} backward" for name in operations}
    assert set(found) - {"loss backward"} == both - {"loss backward"} | {
        "products",
        "attention",
        "engine",
        "model, other",
    }
    assert all(time > 0 for time in found.values())


def test_gpt_and_squared_relu_have_theirs():
    found = set(rooms_of(architecture="gpt", mlp="relu2"))
    assert {"RMSNorm", "RMSNorm backward", "SquaredReLU", "SquaredReLU backward"} <= found
    assert not {"ResidualStep", "SwiGLU", "RotaryQKNorm"} & found


def test_the_limit_counts_and_does_every_product():
    config = ModelConfig(**SIZES)
    products = Products(config, 24, torch.float32, CPU)
    # per layer four matrices of 32 by 32 and three of 32 by 128; a head of 64 rows
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 128) + 64 * 32
    assert products.operations == 6 * 24 * matrices
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as trace:
        products()
    assert sum(e.flops for e in trace.key_averages() if e.key == "aten::mm") == products.operations
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        Attention(config, 2, 12, torch.float32, CPU)()
    found = by_room(trace.events(), on_gpu=False)
    assert found["attention"] > 0


def test_least_bytes_follow_the_shapes():
    config = Config(
        model=ModelConfig(**SIZES), data=DataConfig(seq_len=8), train=TrainConfig(dtype="bf16")
    )
    found = least_bytes(config, 8)
    assert found["ResidualStep"] == 3 * 2 * 2 * 8 * 32 * 2  # tensors, a block, blocks, ..., bf16
    assert found["loss"] + found["loss backward"] == 3 * 8 * 64 * 2


@pytest.mark.parametrize("form", ["table", pytest.param("json", marks=pytest.mark.slow)])
def test_as_a_user_runs_it(tmp_path, form):
    trace = tmp_path / "new" / "trace.json"
    sizes = [f"--model.{name}={value}" for name, value in SIZES.items()]
    words = [*sizes, "--data.seq_len=16", "--train.global_batch=4", "--train.micro_batch=2"]
    command = [sys.executable, "tools/profile_step.py", "--steps=2", f"--trace={trace}"]
    command += ["--engine.device=cpu", *words, *(["--json"] if form == "json" else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(trace.read_text())["traceEvents"]
    if form == "table":
        for room in ("products", "engine", "optimizer", "projection", "SwiGLU backward", "data"):
            assert f"\n| {room} | " in done.stdout
        assert "share of the limit: " in done.stdout
        return
    found = json.loads(done.stdout)
    assert sum(found["rooms"].values()) == pytest.approx(1)
    assert 0 < found["products"] < found["step"]


def test_settings_that_cannot_run_are_told():
    command = [sys.executable, "tools/profile_step.py", "--model.width=30", "--model.heads=4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "model.heads" in done.stderr
