"""Bytes that one rank communicates in one step, axis by axis.

n parameters in the rank's model, A micro-batches, h = micro_batch * seq_len * D * e bytes of hidden
states, L layers on the rank; with context parallelism h is a rank's share and dp stands for the
ranks of dp and cp; Q and K query and key features of a rank, t its tokens:

    dp, stage 0   all-reduce 4 n
        stage 1   all-reduce 4 n, all-gather of the weights (2 n as bf16 copies, else 4 n)
        stage 2   the same with A all-reduces
        stage 3   A reduce-scatters of 4 n; all-gathers of the weights, 2 n in bf16 and 4 n in fp32:
                  one a micro-batch, two where more than ``stage3_max_live_parameters`` are let go
                  after forward, but for the head, whose gradient is made there; small parameters
                  once a step
        1, 2, 3   all-reduce of 4 bytes per unit vector: the projection
    tp            4 L + 1 per embedding and head: all-gather or reduce-scatter of h in forward, as
                  many in backward, per micro-batch; 4 L more with recomputation, L for the MLP in
                  tiles
    cp, Ulysses   all-to-all of t e (Q + 2 K) there and t e Q back, per layer and micro-batch, and
                  as much in backward; half as much again with recomputation
        ring of R 2 t e K sent R - 1 times in forward, again in recomputation and in backward, where
                  their gradients 8 t K follow R times
                  no collective again that ``train.recompute_keep`` spares, by its name or attention
    pp            h / tp to the next stage and h / tp back, per micro-batch and boundary

Left out: norms, losses, and what is a few bytes per token (the vocab-parallel loss).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal, NamedTuple

from megatron_ngpt.config import Config
from megatron_ngpt.estimate.activations import rank_tokens
from megatron_ngpt.estimate.state import BF16, FP32, RankState, rank_parameters
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.parallel.shard import local_model, local_shard
from megatron_ngpt.parallel.stages import stage_map


class Traffic(NamedTuple):
    """One kind of collective, all its calls of a step together."""

    axis: Literal["dp", "cp", "tp", "pp"]
    operation: Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"]

    size: int
    """Bytes of the whole tensors it works on: reduced, gathered or sent."""

    def sent(self, degrees: Degrees) -> int:
        """Bytes that leave a rank by the ring algorithm, which is optimal in bytes."""
        if self.axis == "dp":
            ranks = degrees.replicas
        else:
            ranks = degrees.ulysses if self.axis == "cp" else getattr(degrees, self.axis)
        if self.operation == "send":
            return self.size
        return (2 if self.operation == "all-reduce" else 1) * self.size * (ranks - 1) // ranks


def step_traffic(config: Config, degrees: Degrees, pp_index: int = 0) -> list[Traffic]:
    """What a rank of this pipeline index communicates in a step, the module's table in numbers."""
    micro_batches = config.train.global_batch // (config.train.micro_batch * degrees.dp)
    found: list[Traffic] = []
    if degrees.replicas > 1:
        found += _data_parallel(config, degrees, pp_index, micro_batches)
    if degrees.cp > 1:
        found += _context_parallel(config, degrees, pp_index, micro_batches)
    if degrees.tp > 1 or degrees.pp > 1:
        found += _between_layers(config, degrees, pp_index, micro_batches)
    return found


def sent_by_axis(config: Config, degrees: Degrees, pp_index: int) -> dict[str, int]:
    """Bytes that a rank sends in a step along each axis that has more than one rank."""
    sent: dict[str, int] = {}
    for traffic in step_traffic(config, degrees, pp_index):
        sent[traffic.axis] = sent.get(traffic.axis, 0) + traffic.sent(degrees)
    return sent


def _data_parallel(
    config: Config, degrees: Degrees, pp_index: int, micro_batches: int
) -> Iterator[Traffic]:
    state = RankState.of(config, degrees, pp_index)
    reductions = micro_batches if state.stage > 1 else 1
    kind: Literal["all-reduce", "reduce-scatter"] = (
        "reduce-scatter" if state.stage == 3 else "all-reduce"
    )
    yield Traffic("dp", kind, FP32 * state.parameters * reductions)
    if state.stage:
        vectors = _unit_vectors(config, degrees, pp_index)
        sums = 3 if config.optim.angle_cap else 1
        yield Traffic("dp", "all-reduce", FP32 * sums * vectors)
        head = _head(config, degrees, pp_index)
        yield Traffic("dp", "all-gather", _gathered(state, config, micro_batches, head))


def _context_parallel(
    config: Config, degrees: Degrees, pp_index: int, micro_batches: int
) -> Iterator[Traffic]:
    """Queries, keys, values and their gradients that cross ranks around and inside attention."""
    stages = stage_map(config)
    layers = sum(len(stages.parts[number].layers) for number in stages.of_rank(pp_index))
    model, calls = local_model(config.model, degrees.tp), layers * micro_batches
    q, k = model.maps * model.output_width, model.maps * model.value_width
    element, tokens = (BF16 if config.train.dtype == "bf16" else FP32), rank_tokens(config)
    if degrees.ulysses > 1:
        exchanged = tokens * element * (2 * q + 2 * k)
        passes = 2 + _again(config, "all_to_all")
        yield Traffic("cp", "all-to-all", passes * calls * exchanged)
    if degrees.ring > 1:
        pairs = (2 + _again(config, "attention")) * (degrees.ring - 1) * 2 * k * element
        gradients = degrees.ring * 2 * k * FP32
        yield Traffic("cp", "send", calls * tokens * (pairs + gradients))


def _again(config: Config, op: str) -> bool:
    """Whether blocks do this op once more in backward."""
    return config.train.recompute and op not in config.train.recompute_keep


def _branches_again(config: Config, op: str) -> int:
    """In how many of attention and MLP a recomputed block does this; tiles are never spared."""
    return 2 if _again(config, op) else int(config.train.recompute and config.train.mlp_tile > 0)


def _unit_vectors(config: Config, degrees: Degrees, pp_index: int) -> int:
    """How many vectors of length 1 are in a rank's matrices, tp's padding included."""
    return sum(
        local_shard(spec, degrees, 0).shape[1 - spec.norm_dim] * spec.groups
        for spec in rank_parameters(config, degrees, pp_index)
        if spec.norm_dim is not None
    )


def _head(config: Config, degrees: Degrees, pp_index: int) -> int:
    """Values of the head on a rank, 0 where it has none of its own."""
    specs = rank_parameters(config, degrees, pp_index)
    return sum(
        prod(local_shard(spec, degrees, 0).shape) for spec in specs if spec.name == "head.weight"
    )


def _gathered(state: RankState, config: Config, micro_batches: int, head: int) -> int:
    """Bytes of all-gathered weights in a step; the head has so many values."""
    low = BF16 if config.train.dtype == "bf16" else FP32
    if state.stage < 3:
        matrix = low if state.copies else FP32
        return FP32 * sum(state.vectors) + matrix * sum(state.matrices)
    limit, live = state.persistence_threshold, state.live_parameters
    large = [size for size in state.matrices if size > limit]
    again = sum(large) - (head if head > limit else 0) if sum(large) > live else 0
    small = sum(state.matrices) - sum(large)
    once = FP32 * sum(state.vectors) + low * small
    return once + low * micro_batches * (sum(large) + again)


def _between_layers(
    config: Config, degrees: Degrees, pp_index: int, micro_batches: int
) -> Iterator[Traffic]:
    """Hidden states that cross tensor-parallel ranks and pipeline stages."""
    stages = stage_map(config)
    parts = [stages.parts[number] for number in stages.of_rank(pp_index)]
    element = BF16 if config.train.dtype == "bf16" else FP32
    hidden = rank_tokens(config) * config.model.width * element
    if degrees.tp > 1:
        layers, edges = sum(len(p.layers) for p in parts), sum(p.first + p.last for p in parts)
        gathers = layers * (4 + _branches_again(config, "all_gather")) + edges
        scatters = layers * (4 + _branches_again(config, "reduce_scatter")) + edges
        # tiles only gather again: what follows their last product is not recomputed
        gathers += layers * bool(config.train.mlp_tile)
        yield Traffic("tp", "all-gather", gathers * micro_batches * hidden)
        yield Traffic("tp", "reduce-scatter", scatters * micro_batches * hidden)
    if degrees.pp > 1:
        crossed = [
            other
            for mine in stages.of_rank(pp_index)
            for other in (mine - 1, mine + 1)  # where the V turns, the next stage is at home
            if 0 <= other < len(stages.owners) and stages.owners[other] != pp_index
        ]
        yield Traffic("pp", "send", len(crossed) * micro_batches * hidden // degrees.tp)
