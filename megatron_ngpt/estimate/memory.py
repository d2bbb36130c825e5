"""Bytes on one rank at the worst moment of a step."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from megatron_ngpt.config import Config
from megatron_ngpt.estimate.activations import activations
from megatron_ngpt.estimate.state import RankState
from megatron_ngpt.mesh.degrees import Degrees


@dataclass(frozen=True)
class Memory:
    """One rank's bytes. Not in it: CUDA's context, NCCL's buffers, fragmentation."""

    weights: int
    """Parameters as forward and backward read them."""

    gradients: int
    """What the backward accumulates."""

    optimizer: int
    """fp32 masters, where they are not the weights, and Adam's averages."""

    activations: int
    """What forward keeps for backward, and the gradients inside it."""

    buffers: int
    """DeepSpeed's, as far as they do not fit into what the activations have left by then."""

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(asdict(self).values())


def rank_memory(config: Config, degrees: Degrees, pp_index: int) -> Memory:
    """Memory of the ranks of one pipeline index.

    Two moments compete: the last backward's start, when activations are all there, and the
    reduction of gradients after it, when they are gone.
    """
    state = RankState.of(config, degrees, pp_index)
    kept = activations(config, degrees, pp_index)
    return Memory(
        weights=state.weights,
        gradients=state.gradients(),
        optimizer=state.optimizer,
        activations=kept,
        buffers=max(state.backward_buffers, state.step_buffers - kept),
    )


def busiest(config: Config, degrees: Degrees) -> tuple[int, Memory]:
    """Pipeline index whose ranks need most memory, and how much."""
    found = [(index, rank_memory(config, degrees, index)) for index in range(degrees.pp)]
    return max(found, key=lambda pair: pair[1].total)
