import torch
import torch.distributed as dist

from megatron_ngpt.mesh.degrees import AXES, Degrees
from megatron_ngpt.mesh.mesh import Mesh
from tests.distributed import CPU, run


def _places_and_partners(_):
    """Per axis this rank's index and the ranks of its group, of a 1 x 2 x 1 x 2 mesh."""
    mesh = Mesh.build(Degrees(pp=1, dp=2, cp=1, tp=2), CPU)
    sums = {}
    for axis in AXES:
        one_hot = torch.zeros(4)
        one_hot[mesh.rank] = 1
        dist.all_reduce(one_hot, group=mesh.group(axis))
        sums[axis] = one_hot.nonzero().flatten().tolist()
    return mesh.rank, {axis: mesh.index(axis) for axis in AXES}, sums


def test_groups_join_the_ranks_that_differ_in_one_axis_only():
    degrees = Degrees(pp=1, dp=2, cp=1, tp=2)
    for rank, (told, index, partners) in enumerate(run(4, _places_and_partners)):
        here = degrees.coordinates(rank)
        assert (told, index) == (rank, here)
        for axis in AXES:
            same = [r for r in range(4) if degrees.coordinates(r) | {axis: 0} == here | {axis: 0}]
            assert partners[axis] == same


def _cp_partners(_):
    mesh = Mesh.build(Degrees(pp=1, dp=2, cp=4, tp=1, ulysses=2), CPU)
    groups = (mesh.replica_group, mesh.ulysses_group, mesh.ring_group, mesh.model_group)
    return [dist.get_process_group_ranks(group) for group in groups]


def test_ulysses_ranks_are_neighbours_and_replicas_span_dp_and_cp():
    for rank, (replicas, ulysses, ring, model) in enumerate(run(8, _cp_partners)):
        assert replicas == list(range(8))
        assert ulysses == [rank // 2 * 2, rank // 2 * 2 + 1]
        first = rank // 4 * 4 + rank % 2
        assert ring == [first, first + 2]
        assert model == [rank]
