"""AdamW in one pass with the projection's sums, against torch's AdamW in fp64."""

import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch

from megatron_ngpt.config import EngineConfig
from megatron_ngpt.engine import optimizer as optimizers
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.fused_adamw import NONE, FusedAdamW, Piece, scale_vectors
from megatron_ngpt.ops.fused.build import NotBuilt
from tests.distributed import run
from tests.engine.training import ODD, config_of, some_tokens, train

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
SETTINGS = {"lr": 0.03, "betas": (0.8, 0.7), "eps": 1e-5}
# odd sizes, one above the size from which several threads work, one of more than a block of rows
SHAPES = [(1, 1), (3, 5), (7, 33), (70, 17), (131, 257), (2, 3000)]


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(start, gradients, decay, scale=1.0):
    """Where torch's AdamW ends in fp64."""
    parameter = torch.nn.Parameter(start.double())
    adam = torch.optim.AdamW([parameter], weight_decay=decay, foreach=False, **SETTINGS)
    for gradient in gradients:
        parameter.grad = gradient.double() * scale
        adam.step()
    return parameter.detach(), adam.state[parameter]


def fused(start, decay):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = FusedAdamW([{"params": [parameter], "weight_decay": decay}], **SETTINGS)
    return parameter, optimizer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_steps_and_sums_are_those_of_fp64(shape, dim):
    start = drawn(*shape)
    gradients = [drawn(*shape, seed=n) * 10.0 ** (n - 4) for n in range(4)]
    gradients[0][0] = 0  # an average of nothing
    parameter, optimizer = fused(start, 0.1)
    squares = torch.zeros(shape[1 - dim])
    bits = torch.zeros(shape[1 - dim], dtype=torch.int32)
    optimizer.pieces = {id(parameter): [Piece.of(parameter.data, 0, dim, squares, bits)]}
    for gradient in gradients:
        squares.zero_()
        bits.copy_(-bits_of(parameter.data, dim))
        parameter.grad, optimizer.scale = gradient, 0.5
        optimizer.step()
        assert not bits.any(), "those that the step has found"
    expected, state = reference(start, gradients, 0.1, 0.5)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-6)
    ours = optimizer.state[parameter]
    assert float(ours["step"]) == 4
    for name in ("exp_avg", "exp_avg_sq"):
        largest = float(state[name].abs().max())
        torch.testing.assert_close(ours[name].double(), state[name], rtol=1e-6, atol=1e-6 * largest)
    exact = parameter.detach().double().square().sum(dim)
    torch.testing.assert_close(squares.double(), exact, rtol=3e-7, atol=0)
    assert optimizer.scale == 1.0
    scale_vectors(parameter.data, dim, squares.rsqrt(), bits)
    assert torch.equal(bits, bits_of(parameter.data, dim)), "those that scaling has left"


def bits_of(values, dim):
    """Sums modulo 2^32, as the numbers that int32 has for them."""
    sums = values.numpy().view("uint32").astype(object).sum(dim)
    return torch.tensor([(int(n) + 2**31) % 2**32 - 2**31 for n in sums], dtype=torch.int32)


@pytest.mark.parametrize("dim", [0, 1])
def test_groups_of_a_matrix_and_what_lies_around_it(dim):
    """Halves of vectors have sums of their own; what no piece covers stays as it is."""
    flat = drawn(5 + 6 * 8 + 3)
    parameter, optimizer = fused(flat, 0.0)
    matrix = parameter.data[5:53].view(6, 8)
    halves = matrix.chunk(2, dim)
    sums = torch.zeros(2, matrix.shape[1 - dim])
    optimizer.pieces = {
        id(parameter): [
            Piece.of(half, half.storage_offset(), dim, own)
            for half, own in zip(halves, sums, strict=True)
        ]
        + [Piece.of(parameter.data[:4], 0, NONE, None)]
    }
    parameter.grad = drawn(len(flat), seed=2)
    optimizer.step()
    expected, _ = reference(flat, [parameter.grad], 0.0)
    expected[4], expected[53:] = flat[4], flat[53:]
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=1e-6)
    exact = torch.stack([half.double().square().sum(dim) for half in halves])
    torch.testing.assert_close(sums.double(), exact, rtol=3e-7, atol=0)
    scale_vectors(halves[0], dim, sums[0].rsqrt())
    assert (halves[0].double().norm(dim=dim) - 1).abs().max() <= 2e-7
    torch.testing.assert_close(
        halves[1].double(), expected[5:53].view(6, 8).chunk(2, dim)[1], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dim", [0, 1])
def test_threads_do_not_change_a_bit(dim):
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        parameter, optimizer = fused(drawn(257, 131), 0.0)
        squares = torch.zeros(parameter.shape[1 - dim])
        optimizer.pieces = {id(parameter): [Piece.of(parameter.data, 0, dim, squares)]}
        parameter.grad = drawn(257, 131, seed=2)
        optimizer.step()
        found.append((parameter.detach(), squares))
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def _train_both(mesh, configs):
    """Per configuration the record with the fused optimizer and with torch's."""
    found = []
    for config in configs:
        fused_record = train(mesh, config, some_tokens(3, 4))
        with mock.patch.object(optimizers, "FusedAdamW", side_effect=NotBuilt):
            found.append((fused_record, train(mesh, config, some_tokens(3, 4))))
    return found


def _picked(mesh, configs):
    return [type(Engine(config, mesh).optimizer).__name__ for config in configs]


def test_every_stage_trains_as_with_torchs_adamw():
    """Clipped, so that updates depend on the factor; vectors in groups whose lengths have slack."""
    model = replace(ODD, hyperspheres=2, sphere_slack=0.01)
    optim = {"grad_clip": 0.02, "eps": 0.1, "weight_decay": 0.1}
    configs = [config_of(stage, model, batch=(4, 2), **optim) for stage in range(4)]
    for stage, (ours, theirs) in enumerate(run(2, _train_both, configs)[0]):
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-6), stage
        assert ours.reductions == theirs.reductions, stage
        for name, weight in theirs.final.items():
            assert (ours.final[name] - weight).abs().max() <= 1e-6, (stage, name)
            assert not torch.equal(ours.start[name], weight), name


def test_who_steps():
    """C++ where the configuration lets it, also where angles are capped; gates are torch's."""
    plain = config_of(batch=(4, 4))
    configs = [
        plain,
        replace(plain, engine=EngineConfig(ops="reference")),
        config_of(batch=(4, 4), angle_cap=0.1),
        config_of(batch=(4, 4), gate=2.0),
    ]
    expected = ["FusedAdamW", "AdamW", "FusedAdamW", "GatedAdamW"]
    assert run(1, _picked, configs) == [expected]
