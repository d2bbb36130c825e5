"""Pipeline parallelism: micro-batches through the stages by torch.distributed.pipelining.

The last stage computes the loss itself, so that logits live as long as one micro-batch, and each
stage's backward adds to its parameters' gradients; reducing them over dp is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.utils.checkpoint import GraphExecGroup

from megatron_ngpt.config import Config
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.ops.hypersphere import residual_step
from megatron_ngpt.parallel.apply import Parts
from megatron_ngpt.parallel.context import Inputs
from megatron_ngpt.parallel.stages import StageMap

SCHEDULES: dict[str, Callable[..., Any]] = {
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zero_bubble": pipelining.ScheduleInterleavedZeroBubble,
    "zbv": pipelining.ScheduleZBVZeroBubble,
}


class _Stage(nn.Module):
    """One part as a pipeline stage; the last returns the micro-batch's loss, shape [1]."""

    def __init__(self, part: NGPT) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, targets: Tensor, **places: Tensor) -> Tensor:
        output: Tensor = self.part(x, targets, **places)
        return output.view(1) if self.part.part.last else output


class _SplitBackward(pipelining.PipelineStage):
    """Zero-bubble schedules take a micro-batch's weight gradients later, parameter by parameter.

    Each of these small backward passes would compute the checkpointed block anew. And before torch
    2.13 the node of an ``autograd.Function`` lives no longer than the graph above it, which the
    first pass lets go.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._graphs: dict[int, list[Any]] = {}

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        if not full_backward and not nodes_live_on():
            outputs, _ = self.fwd_cache[bwd_chunk_id]
            graphs = [x.view_as(x).grad_fn for x in outputs if x.requires_grad]
            self._graphs[bwd_chunk_id] = graphs
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        with GraphExecGroup():
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        self._graphs.pop(bwd_chunk_id, None)


@cache
def nodes_live_on() -> bool:
    """Whether Python's reference to the node of an ``autograd.Function`` keeps it alive."""
    one = torch.ones(1, 1, requires_grad=True)
    node: Any = residual_step(one, one.detach(), one.detach()[0]).grad_fn
    try:
        return bool(node._input_metadata)
    except RuntimeError:
        return False


class Pipeline:
    """This rank's stages and the schedule that drives them.

    Args:
        config: the run's.
        mesh: its axis pp carries the stages.
        stages: which rank holds which stage.
        parts: this rank's, in ascending order of stage.

    Raises:
        ValueError: zbv on CPU with a torch that cannot.
    """

    def __init__(self, config: Config, mesh: Mesh, stages: StageMap, parts: Parts) -> None:
        if config.parallel.schedule == "zbv" and mesh.device.type == "cpu" and not nodes_live_on():
            raise ValueError(
                f"parallel.schedule = zbv on CPU with torch {torch.__version__}, which starts by "
                "sending neighbouring stages of one rank a message that gloo cannot carry: take "
                "zero_bubble, or torch 2.13"
            )
        self.mesh, self.stages = mesh, stages
        self.mine = stages.of_rank(mesh.index("pp"))
        self.count = len(stages.parts)
        self.micro_batches = config.train.global_batch // (
            config.train.micro_batch * mesh.degrees.dp
        )
        self.modules = {n: _Stage(part) for n, part in zip(self.mine, parts.parts, strict=True)}  # type: ignore[arg-type]
        self.weight: float | Tensor = 1.0
        self.losses: list[Tensor] = []  # of the micro-batches, on the last stage
        self._shapes(config, next(iter(self.modules.values())).part)
        made = [self._stage(number) for number in self.mine]
        self.schedule = SCHEDULES[config.parallel.schedule](
            made[0] if config.parallel.schedule == "1f1b" else made,
            n_microbatches=self.micro_batches,
            loss_fn=lambda output, _: output.squeeze(0) * self.weight / self.micro_batches,
            scale_grads=False,  # the loss is scaled: gradients may be summed elsewhere meanwhile
        )

    def _shapes(self, config: Config, part: NGPT) -> None:
        """What passes between stages, so that torch need not run the model to find out."""
        rows, seq_len = config.train.micro_batch, config.data.seq_len // self.mesh.degrees.cp
        dtype = torch.bfloat16 if config.train.dtype == "bf16" else torch.float32
        with torch.device("meta"):
            self.tokens = torch.empty(rows, seq_len, dtype=torch.int64)
            shape = (rows, seq_len // part.sequence_shards, config.model.width)
            self.hidden = torch.empty(shape, dtype=dtype, requires_grad=True)
            self.loss = torch.empty(1, requires_grad=True)

    def _stage(self, number: int) -> pipelining.PipelineStage:
        part = self.stages.parts[number]
        return _SplitBackward(
            self.modules[number],
            number,
            self.count,
            self.mesh.device,
            input_args=(self.tokens if part.first else self.hidden,),
            output_args=(self.loss if part.last else self.hidden,),
            group=self.mesh.group("pp"),
        )

    def backward(self, inputs: Inputs, weight: float | Tensor = 1.0) -> Tensor:
        """Accumulate gradients of all micro-batches; mean loss on the last stage's rank, else 0.

        Args:
            inputs: [accumulation, micro_batch, ...], the same on every rank of the pipeline.
            weight: factor of the loss.
        """
        losses: list[Tensor] = []
        self.weight = weight
        flat = {name: x.flatten(0, 1) for name, x in inputs._asdict().items() if x is not None}
        tokens = flat.pop("tokens")
        first = (tokens,) if 0 in self.mine else ()
        if "first" in flat:
            flat["first_BS"] = flat.pop("first")
        # outputs that the schedule collects would keep the graph of every micro-batch of the step
        self.schedule.step(
            *first, target=flat["targets"], losses=losses, return_outputs=False, **flat
        )
        self.losses = [loss.detach().squeeze() * self.micro_batches for loss in losses]
        return torch.stack(losses).sum().detach() if losses else self._zero()

    def forward(self, inputs: Inputs) -> Tensor | None:
        """One micro-batch through all stages without gradients, a stage at a time.

        Returns:
            The last part's output on its rank, None elsewhere.
        """
        tokens, targets, positions, first = inputs
        h: Tensor | None = tokens
        for number, part in enumerate(self.stages.parts):
            if number in self.mine:
                h = self.modules[number].part(h, targets, positions, first_BS=first)
            if not part.last:
                h = self._pass_on(h, number, tokens.shape)
        return h if self.count - 1 in self.mine else None

    def _pass_on(self, h: Tensor | None, number: int, shape: torch.Size) -> Tensor | None:
        """Send stage ``number``'s output for tokens of a shape to the rank of the next stage."""
        giver, taker = self.stages.owners[number], self.stages.owners[number + 1]
        here = self.mesh.index("pp")
        if giver == taker:
            return h
        group = self.mesh.group("pp")
        if here == giver:
            assert h is not None
            dist.send(h.contiguous(), dist.get_global_rank(group, taker), group=group)
        if here != taker:
            return None
        size = (shape[0], shape[1] // self.mesh.degrees.tp, self.hidden.shape[-1])
        received = self.hidden.new_empty(size, device=self.mesh.device)
        dist.recv(received, dist.get_global_rank(group, giver), group=group)
        return received

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.mesh.device)
