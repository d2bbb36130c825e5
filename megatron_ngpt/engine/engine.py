"""One training step: forward, backward, clip, AdamW on fp32 masters, projection, copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.config import Config
from megatron_ngpt.config.deepspeed import deepspeed_config
from megatron_ngpt.engine import zero
from megatron_ngpt.engine.fragment import Rectangle
from megatron_ngpt.engine.optimizer import build_optimizer, set_learning_rate
from megatron_ngpt.engine.projection import Projection
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.initial import initial_box
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import pick_attention
from megatron_ngpt.parallel.shard import local_shard

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _crop(whole: Tensor, box: Rectangle) -> Tensor:
    """The view of an unsharded parameter that a rectangle covers."""
    return whole[tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))]


@dataclass(frozen=True)
class StepResult:
    """What a training step tells."""

    loss: float
    """Mean cross-entropy over the global batch, nats per token."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""


class Engine:
    """A model spread over the mesh and everything that trains it."""

    def __init__(self, config: Config, mesh: Mesh) -> None:
        self.config, self.mesh = config, mesh
        self.table = parameter_table(config.model)
        settings = deepspeed_config(config, mesh.degrees.dp)
        deepspeed = zero.prepare(mesh.device)
        with zero.construction(deepspeed, settings), torch.device(mesh.device):
            dtype = DTYPES[config.train.dtype]
            attend = pick_attention(config.engine.attention, mesh.device, dtype)
            model = NGPT(config.model, dtype, attend)
        if config.train.compile:
            for block in model.blocks:
                block.compile()
        self.deepspeed = zero.start(
            deepspeed, model, self.table, settings, self._optimizer(model), dtype
        )
        self.optimizer = zero.inner_optimizer(self.deepspeed)
        self._find_masters()
        self._initialise()

    def _optimizer(self, model: NGPT) -> Any:
        return lambda _: build_optimizer(model.named_parameters(), self.table, self.config.optim)

    def _find_masters(self) -> None:
        """Locate this rank's fp32 shards and arrange their projection after each step."""
        tp = self.mesh.index("tp")
        shards = {n: local_shard(s, self.mesh.degrees, tp) for n, s in self.table.items()}
        self.fragments = zero.fragments(self.deepspeed, self.table, shards)
        # without ZeRO every rank holds whole vectors and nothing needs adding up
        group = self.mesh.group("dp") if self.config.optim.zero_stage else None
        self.projections = {
            number: Projection([f for f in self.fragments if f.group == number], group)
            for number in sorted({f.group for f in self.fragments})
        }
        numbers = {id(f.flat): f.group for f in self.fragments}

        def project(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            stepped = [id(p) for g in optimizer.param_groups for p in g["params"]]
            for number in sorted({numbers[i] for i in stepped if i in numbers}):
                self.projections[number]()

        self.optimizer.register_step_post_hook(project)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initial weights, written to the masters so that they are the same at every stage."""
        for fragment in self.fragments:
            for box in fragment.rectangles():
                drawn = initial_box(fragment.spec, self.config.train.seed, box.offsets, box.sizes)
                box.view(fragment.master).copy_(drawn)
        self.masters_changed(project=True)

    @torch.no_grad()
    def set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Take over whole unsharded parameters by name, every one of the table; collective."""
        for fragment in self.fragments:
            for box in fragment.rectangles():
                piece = _crop(values[fragment.spec.name], box)
                box.view(fragment.master).copy_(piece)
        self.masters_changed()

    @torch.no_grad()
    def full_weight(self, name: str) -> Tensor:
        """One whole unsharded fp32 parameter, put together from the masters; collective."""
        whole = torch.zeros(self.table[name].shape, device=self.mesh.device)
        for fragment in (f for f in self.fragments if f.spec.name == name):
            for box in fragment.rectangles():
                _crop(whole, box).copy_(box.view(fragment.master))
        if self.config.optim.zero_stage:
            dist.all_reduce(whole, group=self.mesh.group("dp"))
        return whole

    def masters_changed(self, project: bool = False) -> None:
        """Bring every copy in line after masters were written; collective."""
        if project:
            for projection in self.projections.values():
                projection.alike()
        zero.refresh_copies(self.deepspeed)

    def train_step(self, tokens: Tensor, targets: Tensor, lr: float) -> StepResult:
        """One optimizer step on this rank's share of the global batch.

        Args:
            tokens: ids [accumulation, micro_batch, T].
            targets: the ids that follow them, same shape.
            lr: learning rate of this step.
        """
        loss = self.backward(tokens, targets)
        return StepResult(self.mean(loss), self.update(lr))

    def backward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradient of this rank's share; returns its mean loss."""
        self.deepspeed.train()
        total = torch.zeros((), device=self.mesh.device)
        for number, (x, y) in enumerate(zip(tokens, targets, strict=True)):
            loss = self.deepspeed(x, y)
            self.deepspeed.backward(loss)
            total += loss.detach()
            if number < len(tokens) - 1:
                self.deepspeed.step()  # counts the micro-batch, changes nothing yet
        return total / len(tokens)

    def update(self, lr: float) -> float:
        """Clip, step, project, refresh the copies; returns the norm before clipping."""
        set_learning_rate(self.optimizer, lr)
        norm = self._clip()
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm() if norm is None else norm)

    def _clip(self) -> Tensor | None:
        """Clip at stage 0, where DeepSpeed would not report the norm; ZeRO does it in its step."""
        if self.config.optim.zero_stage:
            return None
        limit = self.config.optim.grad_clip or float("inf")
        return torch.nn.utils.clip_grad_norm_(self.deepspeed.module.parameters(), limit)

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor) -> float:
        """Mean loss over the global batch, of which this is one rank's share; collective."""
        self.deepspeed.eval()
        losses = [self.deepspeed(x, y) for x, y in zip(tokens, targets, strict=True)]
        return self.mean(torch.stack(losses).mean())

    def mean(self, value: Tensor) -> float:
        """Average of a scalar over the data-parallel ranks; collective."""
        value = value / self.mesh.degrees.dp
        dist.all_reduce(value, group=self.mesh.group("dp"))
        return float(value)
