"""Forward and backward of every collective against the same maths on one process.

All numbers are small integers in fp64, so every sum is exact and equality is equality.
"""

import pytest
import torch

from megatron_ngpt.mesh.collectives import (
    PassedOn,
    exchange,
    gather_tokens,
    sum_and_split_tokens,
    sum_gradient,
)
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from tests.distributed import CPU, run

B, T, D = 2, 12, 3


def on_one_process(name, inputs):
    """What each rank should get from the inputs of all."""
    ranks = len(inputs)
    if name == "gather_tokens":
        return [torch.cat(inputs, dim=1)] * ranks
    if name == "sum_and_split_tokens":
        return list(sum(inputs).chunk(ranks, dim=1))
    return inputs


OPERATIONS = {
    "gather_tokens": gather_tokens,
    "sum_and_split_tokens": sum_and_split_tokens,
    "sum_gradient": sum_gradient,
}


def integers(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).double()


def length_before(name, ranks):
    return T // ranks if name == "gather_tokens" else T


def operands(name, ranks, group):
    """Inputs of the ranks of one group, and weights of their outputs in the loss."""
    length = length_before(name, ranks)
    after = {"gather_tokens": T, "sum_and_split_tokens": T // ranks}.get(name, length)
    inputs = [integers(B, length, D, seed=10 * group + r) for r in range(ranks)]
    weights = [integers(B, after, D, seed=500 + 10 * group + r) for r in range(ranks)]
    return inputs, weights


def _go_through(mesh, tp):
    """Output and gradient of every operation on this rank; the dp index tells the groups apart."""
    world = mesh.degrees.dp
    mesh = Mesh.build(Degrees(pp=1, dp=world // tp, cp=1, tp=tp), CPU)
    found = {}
    for name, operation in OPERATIONS.items():
        inputs, weights = operands(name, tp, mesh.index("dp"))
        mine = inputs[mesh.index("tp")].requires_grad_()
        output = operation(mine, mesh.group("tp"))
        (output * weights[mesh.index("tp")]).sum().backward()
        found[name] = output.detach(), mine.grad
    return found


@pytest.mark.parametrize(("world_size", "tp"), [(2, 2), (3, 3), (4, 4), (4, 2)])
def test_outputs_and_gradients_are_those_of_one_process(world_size, tp):
    answers = run(world_size, _go_through, tp)
    for group in range(world_size // tp):
        for name in OPERATIONS:
            inputs, weights = operands(name, tp, group)
            for leaf in inputs:
                leaf.requires_grad_()
            expected = on_one_process(name, inputs)
            # what sum_gradient adds up was one tensor all along: every rank gets all gradients
            loss = sum((y * w).sum() for y, w in zip(expected, weights, strict=True))
            loss.backward()
            gradients = [leaf.grad for leaf in inputs]
            if name == "sum_gradient":
                gradients = [sum(gradients)] * tp
            for index in range(tp):
                output, gradient = answers[group * tp + index][name]
                assert torch.equal(output, expected[index]), name
                assert torch.equal(gradient, gradients[index]), name


def _gradient_twice(mesh):
    """The gradient that autograd hands in must stay as it is: others may hold it, too."""
    x = torch.ones(2, requires_grad=True)
    handed_in = torch.full((2,), float(mesh.rank + 1))
    y = sum_gradient(x, mesh.group("dp"))
    (gradient,) = torch.autograd.grad(y, x, handed_in)
    return handed_in, gradient


def test_the_gradient_handed_in_is_not_overwritten():
    for rank, (handed_in, gradient) in enumerate(run(2, _gradient_twice)):
        assert handed_in.tolist() == [rank + 1.0] * 2
        assert gradient.tolist() == [3.0] * 2


def _exchanged(mesh):
    n = mesh.degrees.dp
    x = integers(n, 2, 3, seed=mesh.rank).requires_grad_()
    y = exchange(x.transpose(1, 2), mesh.group("dp"))
    y.backward(integers(n, 3, 2, seed=100 + mesh.rank))
    return y.detach(), x.grad


def test_an_exchange_gives_every_rank_its_piece_of_all():
    found = run(3, _exchanged)
    inputs = [integers(3, 2, 3, seed=rank).transpose(1, 2) for rank in range(3)]
    weights = [integers(3, 3, 2, seed=100 + rank) for rank in range(3)]
    for rank, (output, gradient) in enumerate(found):
        assert torch.equal(output, torch.stack([theirs[rank] for theirs in inputs]))
        back = torch.stack([theirs[rank] for theirs in weights])
        assert torch.equal(gradient, back.transpose(1, 2))


def _passed_on(mesh):
    pair = [torch.full((2, 3), float(mesh.rank)).T, torch.arange(4.0) + mesh.rank]
    seen = []
    for _ in range(mesh.degrees.dp):
        pair = PassedOn(pair, mesh.group("dp")).wait()
        seen.append([tensor.clone() for tensor in pair])
    return seen


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_is_passed_on_comes_from_the_rank_before_and_goes_round(ranks):
    for rank, seen in enumerate(run(ranks, _passed_on)):
        for step, (first, second) in enumerate(seen, 1):
            source = (rank - step) % ranks
            assert torch.equal(first, torch.full((3, 2), float(source)))
            assert torch.equal(second, torch.arange(4.0) + source)
