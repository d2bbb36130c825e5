"""A model spread over the mesh: this rank's pipeline parts, each a tensor-parallel piece.

The order is fixed: narrow the model to a tp rank, cut it into parts, hook in the tp collectives,
then recomputation, then compilation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from megatron_ngpt.config import Config, TrainConfig
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.ngpt import NGPT, Block
from megatron_ngpt.model.part import Part
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.parallel.compiled import compile_blocks
from megatron_ngpt.parallel.context import context_attention
from megatron_ngpt.parallel.shard import local_model, local_shard
from megatron_ngpt.parallel.tensor import apply_tensor_parallel


class Parts(nn.Module):
    """The parts of the model that one rank holds: one, or several under interleaved schedules."""

    def __init__(self, parts: list[NGPT]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        positions: Tensor | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """Without pipeline parallelism: the whole model, see :meth:`NGPT.forward`."""
        output: Tensor = self.parts[0](tokens, targets, positions, first_BS=first)
        return output


def table_name(name: str) -> str:
    """Name in the parameter table of a name in ``Parts.named_parameters()``."""
    return re.sub(r"^parts\.\d+\.", "", name)


def table_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of :class:`Parts` under their table names."""
    for name, parameter in module.named_parameters():
        yield table_name(name), parameter


def build_parts(
    config: Config,
    mesh: Mesh,
    parts: list[Part],
    dtype: torch.dtype,
    attend: Attend,
    ops: Operations = REFERENCE,
) -> Parts:
    """Build this rank's parts on the mesh's device, parameters allocated but not filled."""
    tp = mesh.degrees.tp
    narrow, attend = local_model(config.model, tp), context_attention(mesh, attend, dtype)
    if config.train.compile and (mesh.degrees.cp > 1 or config.data.document_mask):
        # neither messages nor a number of documents that changes with every batch compile
        attend = torch.compiler.disable(attend)
    with torch.device(mesh.device):
        built = Parts([NGPT(narrow, dtype, attend, part, ops) for part in parts])
    for part in built.parts:
        assert isinstance(part, NGPT)
        if tp > 1:
            spec = parameter_table(config.model)["embed.weight"]
            vocabulary = local_shard(spec, mesh.degrees, mesh.index("tp"))
            apply_tensor_parallel(part, vocabulary, mesh.group("tp"))
        for block in part.blocks.values():
            assert isinstance(block, Block)
            block.attention.whole = config.optim.zero_stage < 3 and mesh.degrees.pp == 1
        _save_memory(part, config.train)
        if config.train.compile:
            compile_blocks(part.blocks)
    return built


def _save_memory(part: NGPT, train: TrainConfig) -> None:
    """Hand on what the run says about keeping and computing again."""
    part.recompute, part.offload = train.recompute, train.offload
    part.keep = train.recompute_keep
    if part.head is not None:
        part.head.chunk = train.loss_chunk
    for block in part.blocks.values():
        assert isinstance(block, Block)
        block.mlp_tile = train.mlp_tile
