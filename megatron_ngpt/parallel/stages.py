"""Which layers each pipeline stage holds and which rank holds each stage: arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from megatron_ngpt.config import Config
from megatron_ngpt.model.part import Part


@dataclass(frozen=True)
class StageMap:
    """The layers in order, cut into stages, and the stages dealt out to ranks."""

    parts: tuple[Part, ...]
    """What each stage holds, first to last."""

    owners: tuple[int, ...]
    """Pipeline rank of each stage."""

    def of_rank(self, pp_index: int) -> list[int]:
        """Numbers of the stages that a rank holds, ascending."""
        return [stage for stage, owner in enumerate(self.owners) if owner == pp_index]


def stage_map(config: Config) -> StageMap:
    """Stages of a run: balanced, or as ``parallel.layers_per_stage`` says.

    Raises:
        ValueError: the layers do not fill the stages.
    """
    parallel, layers = config.parallel, config.model.layers
    count = parallel.pp * parallel.stages_per_rank if parallel.pp > 1 else 1
    sizes = list(parallel.layers_per_stage) or balanced(layers, count, head_cost(config))
    empty = min(sizes[:-1], default=1) < 1 or sizes[-1] < 0
    if empty or len(sizes) != count or sum(sizes) != layers:
        raise ValueError(
            f"parallel.layers_per_stage = {sizes} must be {count} numbers (pp * stages_per_rank), "
            f"none but the last of them 0, that add up to model.layers = {layers}: change them, or "
            "use fewer stages"
        )
    return StageMap(_parts(sizes), _owners(parallel.pp, count, parallel.schedule))


def _parts(sizes: list[int]) -> tuple[Part, ...]:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    last = len(sizes) - 1
    return tuple(
        Part(range(start, start + size), first=n == 0, last=n == last)
        for n, (start, size) in enumerate(zip(starts, sizes, strict=True))
    )


def _owners(pp: int, count: int, schedule: str) -> tuple[int, ...]:
    """Stages go round the ranks; zbv goes there and back, so a rank holds first and last."""
    if schedule == "zbv":
        return (*range(pp), *reversed(range(pp)))[:count]
    return tuple(stage % pp for stage in range(count))


def head_cost(config: Config) -> float:
    """Cost of the logits, in transformer blocks, by multiplications per token."""
    model = config.model
    inner = model.query_width + model.key_width + model.value_width + model.output_width
    block = model.width * (inner + (3 if model.is_gated else 2) * model.ffn_width)
    # causal: half of T, twice
    block += model.maps * model.output_width * config.data.seq_len
    return model.vocab_size * model.width / block


def balanced(layers: int, stages: int, head: float) -> list[int]:
    """Layers per stage so that the busiest stage is least busy.

    Args:
        layers: how many there are.
        stages: how many to cut them into.
        head: cost of the last stage beside its layers, in layers. Embedding is a look-up and costs
            nothing here.
    """
    return list(_balanced(layers, stages, head))


@lru_cache(maxsize=256)  # numbers of numbers: an estimate asks thousands of times
def _balanced(layers: int, stages: int, head: float) -> tuple[int, ...]:
    sizes, extra = [0] * stages, [0.0] * (stages - 1) + [head]
    for _ in range(layers):
        # an empty stage comes first: only the last may do without layers
        stage = min(
            range(stages), key=lambda n: (sizes[n] > 0 or n == stages - 1, sizes[n] + extra[n])
        )
        sizes[stage] += 1
    return tuple(sizes)
