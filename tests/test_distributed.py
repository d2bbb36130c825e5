import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run


def _sum(mesh, value):
    total = torch.tensor([value * (mesh.rank + 1)])
    dist.all_reduce(total, group=mesh.group("dp"))
    return mesh.rank, total


def _one_fails(mesh):
    if mesh.rank == 1:
        raise KeyError("only here")
    dist.barrier()


def _one_dies(mesh):
    if mesh.rank == 0:
        print("last words", flush=True)
        os._exit(7)
    time.sleep(60)


def _forgets_its_partner(mesh):
    if mesh.rank == 0:
        dist.barrier()
    time.sleep(60)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_answers(world_size):
    expected = 2 * sum(range(1, world_size + 1))
    answers = run(world_size, _sum, 2)
    assert [(rank, total.item()) for rank, total in answers] == [
        (rank, expected) for rank in range(world_size)
    ]


def test_a_failure_ends_all_ranks_and_shows_its_traceback():
    before = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"rank 1: (?s:.)*_one_fails(?s:.)*KeyError: 'only here'"
    ):
        run(2, _one_fails)
    assert time.monotonic() - before < 100


def test_a_death_is_told_with_exit_code_and_output():
    with pytest.raises(RuntimeError, match=r"rank 0: died with exit code 7\nlast words"):
        run(2, _one_dies)


def test_a_hang_is_told_with_the_place():
    with pytest.raises(RuntimeError, match=r"rank 1: did not end(?s:.)*_forgets_its_partner"):
        run(2, _forgets_its_partner, timeout=6)
