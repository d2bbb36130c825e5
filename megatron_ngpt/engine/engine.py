"""One training step: forward, backward, clip, AdamW on fp32 masters, projection, copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.config import IGNORED, Config
from megatron_ngpt.config.deepspeed import needs_deepspeed
from megatron_ngpt.engine import direct, zero
from megatron_ngpt.engine.fused_adamw import FusedAdamW
from megatron_ngpt.engine.gate import Gate
from megatron_ngpt.engine.masters import Masters
from megatron_ngpt.engine.optimizer import averages, build_optimizer, set_learning_rate
from megatron_ngpt.engine.schedule import angle_cap
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import pick_attention
from megatron_ngpt.ops.documents import targets_within
from megatron_ngpt.ops.fused import pick_operations
from megatron_ngpt.parallel.apply import build_parts
from megatron_ngpt.parallel.context import (
    Inputs,
    gather_sequences,
    micro_batches,
    shared_inputs,
)
from megatron_ngpt.parallel.shard import local_shard
from megatron_ngpt.parallel.stages import stage_map
from megatron_ngpt.parallel.tensor import gather_vocabulary

if TYPE_CHECKING:
    from megatron_ngpt.parallel.pipeline import Pipeline

Judge = Callable[[float, float], str]
"""Loss and norm of a gradient -> what is wrong with them, "" if nothing; the same on all ranks."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StepResult:
    """What a training step tells."""

    loss: float
    """Mean cross-entropy over the global batch, nats per token."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping."""

    targets: int
    """Tokens of the global batch that were predicted and count in the loss: all, or those within
    documents."""

    problem: str = ""
    """Why the step was not done, "" where it was."""


class Engine:
    """A model spread over the mesh and everything that trains it."""

    def __init__(self, config: Config, mesh: Mesh) -> None:
        self.config, self.mesh = config, mesh
        self.table = parameter_table(config.model)
        dtype, tp = DTYPES[config.train.dtype], mesh.index("tp")
        self.shards = {n: local_shard(s, mesh.degrees, tp) for n, s in self.table.items()}
        stages = stage_map(config)
        mine = [stages.parts[number] for number in stages.of_rank(mesh.index("pp"))]
        attend = pick_attention(config.engine.attention, mesh.device, dtype)
        ops = pick_operations(config.engine.ops, mesh.device)
        start = zero.start if needs_deepspeed(config, mesh.degrees.replicas) else direct.start
        self.deepspeed: Any = start(
            config,
            mesh,
            self.table,
            self.shards,
            lambda: build_parts(config, mesh, mine, dtype, attend, ops),
            lambda named: build_optimizer(named, self.table, config, mesh.device),
        )
        self.optimizer = zero.inner_optimizer(self.deepspeed)
        limits = config.optim.angle_cap, config.train.check_bits
        self.masters = Masters(self.deepspeed, mesh, self.table, self.shards, *limits)
        self.masters.initialise(config.train.seed)
        self.gate = Gate(self.optimizer, self._prepare)
        self.targets: int | Tensor = 0  # that counted in the last backward or evaluation
        self.losses: list[Tensor] = []  # of the micro-batches of the last backward, here
        self.unsound: list[str] = []  # parameters of the last refused step, see _unsound
        self.pipeline: Pipeline | None = None
        if mesh.degrees.pp > 1:
            # torch's pipelines bring its compiler along, seconds that others do not have to wait
            from megatron_ngpt.parallel.pipeline import Pipeline

            self.pipeline = Pipeline(config, mesh, stages, self.deepspeed.module)

    def train_step(
        self, tokens: Tensor, targets: Tensor, lr: float, judge: Judge = lambda *_: ""
    ) -> StepResult:
        """One optimizer step on this rank's share of the global batch.

        Args:
            tokens: ids [accumulation, micro_batch, T], whole sequences, the same on ranks that
                differ in tp, cp or pp.
            targets: the ids that follow them, same shape.
            lr: learning rate of this step.
            judge: where it finds something wrong nothing changes but the gradient, which goes. It
                is asked once, before the step; of a sharded gradient, whose norm ZeRO finds in its
                step, only whether that is finite counts.
        """
        loss = self.mean(self.backward(tokens, targets))
        norm, problem = self._update(lr, partial(judge, loss))
        return StepResult(loss, norm, int(self.targets), problem)

    def backward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradient of this rank's share; returns its mean loss.

        With a pipeline, ranks without the last stage return 0.
        """
        self.deepspeed.train()
        inputs = shared_inputs(self.config, self.mesh, tokens, targets)
        self.targets, weight = self._targets(tokens, targets)
        if self.pipeline is not None:
            loss = self.pipeline.backward(inputs, weight)
            self.losses = self.pipeline.losses
            zero.reduce_after_pipeline(self.deepspeed)
            return loss
        total = torch.zeros((), device=self.mesh.device)
        self.losses = []
        for number, micro_batch in enumerate(micro_batches(inputs)):
            loss = self.deepspeed(*micro_batch) * weight
            self.deepspeed.backward(loss)
            self.losses.append(loss.detach())
            total += self.losses[-1]
            if number < len(tokens) - 1:
                self.deepspeed.step()  # counts the micro-batch, changes nothing yet
        return total / len(tokens)

    def update(self, lr: float) -> float:
        """Clip, step, project, refresh the copies; returns the norm before clipping."""
        return self._update(lr, lambda _: "")[0]

    def _update(self, lr: float, judge: Callable[[float], str]) -> tuple[float, str]:
        """The same, unless something is wrong; the norm, and what."""
        set_learning_rate(self.optimizer, lr)
        self.masters.cap_angles(angle_cap(self.config, lr))
        norm = self._clip()
        problem = judge(0.0 if norm is None else float(norm))
        self.gate.open = not problem
        self.unsound = self._unsound() if problem and norm is not None else []
        self.deepspeed.step()
        if norm is None:
            norm = self.deepspeed.get_global_grad_norm()
            if not math.isfinite(norm):  # ZeRO has left the step out by itself, on all ranks
                problem = problem or f"grad_norm is {float(norm)}"
        return float(norm), problem

    def _prepare(self) -> None:
        """Make the optimizer's state, as its first step would."""
        for fragment in self.masters.fragments:
            averages(self.optimizer, self.config.optim, fragment)

    def _unsound(self) -> list[str]:
        """Parameters whose gradient is not finite on this rank, which holds whole ones."""
        grads = [(f.spec.name, f.flat.grad) for f in self.masters.fragments]
        return [name for name, grad in grads if grad is not None and not grad.isfinite().all()]

    @torch.no_grad()
    def _clip(self) -> Tensor | None:
        """Clip where every rank holds whole gradients; ZeRO does it in its step."""
        if self.masters.sharded:
            return None
        gradients, squares = [], []
        for fragment in self.masters.fragments:
            gradient = fragment.flat.grad
            assert gradient is not None
            gradients.append(gradient)
            if not fragment.shard.replicated or self.mesh.index("tp") == 0:
                # row by row: over a whole matrix torch's sum in fp32 is off by 1e-4
                squares.append(torch.linalg.vector_norm(gradient, dim=-1).square().sum())
        square = torch.stack(squares).sum()
        if self.mesh.model_group.size() > 1:
            dist.all_reduce(square, group=self.mesh.model_group)
        norm = square.sqrt()
        limit = self.config.optim.grad_clip or float("inf")
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        if isinstance(self.optimizer, FusedAdamW):
            self.optimizer.scale = float(factor) if factor < 1 else 1.0
        elif norm.is_cuda or factor < 1:  # not asked of a GPU, which would stop for it
            torch._foreach_mul_(gradients, factor)
        return norm

    def close(self) -> None:
        """Take the hooks away, so that the memory can be had for another engine."""
        self.deepspeed.destroy()

    @torch.no_grad()
    def evaluate(self, tokens: Tensor, targets: Tensor) -> float:
        """Mean loss over the global batch, of which this is one rank's share; collective.

        ``self.targets`` tells afterwards how many tokens the mean is of.
        """
        self.deepspeed.eval()
        inputs = shared_inputs(self.config, self.mesh, tokens, targets)
        losses = [self.forward(micro_batch) for micro_batch in micro_batches(inputs)]
        mine = [loss for loss in losses if loss is not None]
        mean = torch.stack(mine).mean() if mine else torch.zeros((), device=self.mesh.device)
        self.targets, weight = self._targets(tokens, targets)
        return self.mean(mean * weight)

    def _targets(self, tokens: Tensor, targets: Tensor) -> tuple[int | Tensor, float | Tensor]:
        """How many targets of a global batch count, and all over those; collective with
        documents."""
        total = tokens.numel() * self.mesh.degrees.dp
        if not self.config.data.document_mask:
            return total, 1.0
        counted = (targets_within(tokens, targets, self.config.data.eod) != IGNORED).sum()
        dist.all_reduce(counted, group=self.mesh.group("dp"))
        return counted, total / counted.clamp_min(1)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor | None:
        """Whole logits [B, T, V] of this rank's tokens [B, T]; None without the last stage.

        Any B, and any T that is a multiple of ``parallel.sequence_unit``.
        """
        self.deepspeed.eval()
        logits = self.forward(shared_inputs(self.config, self.mesh, tokens, None))
        if logits is None:
            return None
        if self.mesh.degrees.tp > 1:
            vocab_size, group = self.config.model.vocab_size, self.mesh.group("tp")
            logits = gather_vocabulary(logits, vocab_size, group)
        return gather_sequences(logits, self.mesh)

    def forward(self, inputs: Inputs) -> Tensor | None:
        """One micro-batch through the model: its loss, or logits without targets.

        Returns:
            None on pipeline ranks without the last stage.
        """
        if self.pipeline is not None:
            return self.pipeline.forward(inputs)
        output: Tensor = self.deepspeed(*inputs)
        return output

    def mean(self, value: Tensor) -> float:
        """Average of a scalar over dp and cp, of the last stage where there is a pipeline."""
        value = value / self.mesh.degrees.replicas
        if self.mesh.degrees.replicas > 1:
            dist.all_reduce(value, group=self.mesh.replica_group)
        if self.mesh.degrees.pp > 1:
            dist.all_reduce(value, group=self.mesh.group("pp"))
        return float(value)
