"""How many micro-batches of each of its stages a pipeline rank keeps for backward at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from megatron_ngpt.config import ParallelConfig


def alive(parallel: ParallelConfig, micro_batches: int, pp_index: int) -> list[tuple[int, ...]]:
    """Every count that may be the worst: micro-batches alive in each stage of a rank, ascending.

    What a micro-batch keeps is let go when its weight gradients are done. The zero-bubble schedules
    let go of some of it before, with the input gradients; that is not counted.

    Source: the schedules of torch.distributed.pipelining, with which tests/estimate/test_alive.py
    compares; arXiv 2104.04473 (1F1B, interleaved), arXiv 2401.10241 (zero bubble).
    """
    if parallel.schedule == "zbv":
        return _v_shape(parallel.pp, micro_batches, pp_index)
    return list(_one_forward_one_backward(parallel, micro_batches, pp_index))


def _one_forward_one_backward(
    parallel: ParallelConfig, micro_batches: int, pp_index: int
) -> Iterator[tuple[int, ...]]:
    """1F1B, interleaved and zero bubble: warm up, then one let go for each one begun.

    They differ in the length of the warm-up and in how far weight gradients lag behind.
    """
    stages, after = parallel.stages_per_rank, parallel.pp - 1 - pp_index
    one_round = micro_batches // max(1, micro_batches // parallel.pp)
    lag = pp_index if parallel.schedule == "zero_bubble" else 0
    hop = 2 if parallel.schedule == "interleaved" else 1
    warm_up = (stages - 1) * one_round + hop * after
    begun = _turns(one_round, stages, lambda stage: stage)
    ended = _turns(one_round, stages, lambda stage: stages - 1 - stage)
    held: Counter[int] = Counter()
    for step in range(micro_batches * stages):
        if step - warm_up - lag > 0:
            held[next(ended)] -= 1
        held[next(begun)] += 1
        if step >= warm_up or step == micro_batches * stages - 1:
            yield tuple(held[stage] for stage in range(stages))


def _turns(one_round: int, stages: int, order: Callable[[int], int]) -> Iterator[int]:
    """Whose turn it is: every stage for one round of micro-batches, then the next."""
    while True:
        for stage in range(stages):
            for _ in range(one_round):
                yield order(stage)


def _v_shape(pp: int, micro_batches: int, pp_index: int) -> list[tuple[int, ...]]:
    """Two stages, on the way there and on the way back: together 2 pp at most."""
    there, back = 2 * pp - pp_index, pp_index
    worst = ((there, back), (there - 1, back + 1))
    return [(min(a, micro_batches), min(b, micro_batches)) for a, b in worst]
