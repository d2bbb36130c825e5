"""Who is measured: our engine in its variants, our module in a plain loop, and two peers.

The peers are the package nGPT-pytorch and NVIDIA/ngpt's model from a checkout of the user's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks import nvidia
from benchmarks.shape import Shape
from megatron_ngpt.engine.engine import DTYPES, Engine
from megatron_ngpt.extras import available, require
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import ParameterSpec, parameter_table
from megatron_ngpt.ops.attention import pick_attention
from megatron_ngpt.ops.fused import pick_operations

PACKAGE = "nGPT_pytorch"
OURS = ("ngpt", "gpt", "ngpt-compiled", "gpt-compiled", "plain")
PEERS = ("nvidia", "nvidia-compiled", "package", "package-default")
NAMES = (*OURS, *PEERS)
LEARNING_RATE = 1e-3


@dataclass
class Contestant:
    """One model with its optimizer; a call is one training step and returns the loss."""

    step: Callable[[Tensor], float]
    parameters: int
    batches: list[Tensor]
    """Token ids [micro_batch, T + 1], used in turn."""
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    close: Callable[[], None] = lambda: None
    """Lets go of what would keep it in memory."""

    def __call__(self) -> None:
        """Train on the next batch; a loss that is no number ends the benchmark."""
        loss = self.step(self.batches[self.steps % len(self.batches)])
        assert math.isfinite(loss), f"loss {loss} after {self.steps} steps"
        self.losses.append(loss)
        self.steps += 1


@dataclass(frozen=True)
class Conditions:
    """What is equal for all contestants."""

    shape: Shape
    dtype: Literal["fp32", "bf16"]
    zero_stage: Literal[0, 1, 2, 3]
    mesh: Mesh
    peers: Path | None = None
    """A checkout of NVIDIA/ngpt."""

    def batches(self) -> list[Tensor]:
        """Four batches of random ids, different on every rank."""
        rank, shape = self.mesh.index("dp"), self.shape
        generator = torch.Generator().manual_seed(rank)
        size = (4, shape.micro_batch, shape.seq_len + 1)
        ids = torch.randint(shape.vocab_size, size, generator=generator)
        return list(ids.to(self.mesh.device))


def why_not(name: str, conditions: Conditions) -> str:
    """Why a contestant cannot run here; empty when it can."""
    if name.startswith("nvidia") and conditions.peers is None:
        return "no checkout of NVIDIA/ngpt was given: --peers PATH"
    if conditions.mesh.degrees.dp > 1 and (name == "plain" or name in PEERS):
        return "it brings no data parallelism: measured on one process only"
    if name.startswith("package") and not available(PACKAGE):
        return "the package nGPT-pytorch is not installed"
    return ""


def build(name: str, conditions: Conditions) -> Contestant:
    """A contestant by its name in :data:`NAMES`."""
    if name.startswith("package"):
        return _package(conditions, parametrized=name == "package-default")
    if name.startswith("nvidia"):
        return _nvidia(conditions, compiled=name.endswith("compiled"))
    return _plain(conditions) if name == "plain" else _ours(name, conditions)


def _ours(name: str, at: Conditions) -> Contestant:
    """The real engine, nGPT or GPT: DeepSpeed, clipping, fused AdamW, projection."""
    architecture: Literal["ngpt", "gpt"] = "ngpt" if name.startswith("ngpt") else "gpt"
    compiled = name.endswith("compiled")
    config = at.shape.config(architecture, at.dtype, at.zero_stage, at.mesh.degrees.dp, compiled)
    engine = Engine(config, at.mesh)

    def step(batch: Tensor) -> float:
        return engine.train_step(batch[None, :, :-1], batch[None, :, 1:], LEARNING_RATE).loss

    parameters = sum(math.prod(spec.shape) for spec in engine.table.values())
    return Contestant(step, parameters, at.batches(), close=engine.close)


def _plain(at: Conditions) -> Contestant:
    """The module that the engine trains, in the shortest loop there is; what the engine costs is
    the difference. Parameters have the dtype of the run, without fp32 masters."""
    config = at.shape.config("ngpt", at.dtype, at.zero_stage)
    device, dtype, table = at.mesh.device, DTYPES[at.dtype], parameter_table(config.model)
    with torch.device(device):
        attend, ops = pick_attention("auto", device, dtype), pick_operations("auto", device)
        model = NGPT(config.model, dtype, attend, ops=ops)
    initialise(model, table, config.train.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )

    def step(batch: Tensor) -> float:
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _normalise(model, table)
        return float(loss.detach())

    return Contestant(step, sum(p.numel() for p in model.parameters()), at.batches())


@torch.no_grad()
def _normalise(model: nn.Module, table: dict[str, ParameterSpec]) -> None:
    for name, parameter in model.named_parameters():
        dim = table[name].norm_dim
        if dim is not None:
            parameter.div_(torch.linalg.vector_norm(parameter, dim=dim, keepdim=True))


def _nvidia(at: Conditions, compiled: bool) -> Contestant:
    assert at.peers is not None
    where = (at.peers, at.shape, at.dtype, at.mesh.device)
    step, parameters = nvidia.training_step(*where, LEARNING_RATE, compiled)
    return Contestant(step, parameters, at.batches())


def _package(at: Conditions, parametrized: bool) -> Contestant:
    """nGPT-pytorch in a plain loop: autocast for bf16, clipping, fused AdamW.

    The weights are normalised after each step through the package's own hook. By default the
    package also normalises them in every forward pass (``manual_norm_weights=False``).
    """
    model = _package_model(at.shape, parametrized).to(at.mesh.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    model.register_step_post_hook(optimizer)

    def step(batch: Tensor) -> float:
        with torch.autocast(at.mesh.device.type, torch.bfloat16, enabled=at.dtype == "bf16"):
            loss: Tensor = model(batch, return_loss=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Contestant(step, sum(p.numel() for p in model.parameters()), at.batches())


def _package_model(shape: Shape, parametrized: bool) -> Any:
    """Its model with our widths: head size, feed-forward, untied head, no value residual."""
    ngpt = require(f"{PACKAGE}.nGPT", "test", "the comparison with nGPT-pytorch")
    for kind in vars(ngpt).values():
        # 0.2.16 gives its modules __eq__ without __hash__, and parameters() cannot walk them
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__hash__ is None:
            kind.__hash__ = nn.Module.__hash__
    return ngpt.nGPT(
        num_tokens=shape.vocab_size,
        dim=shape.width,
        depth=shape.layers,
        heads=shape.heads,
        dim_head=shape.width // shape.heads,
        ff_expand_factor=6.0,  # its inner width is int(dim * this * 2 / 3): 4 * width, like ours
        tied_embedding=False,
        add_value_residual=False,
        manual_norm_weights=not parametrized,
    )
