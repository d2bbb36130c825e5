from dataclasses import replace

import pytest
import torch

from megatron_ngpt.config import Config, ModelConfig, OptimConfig, TrainConfig
from megatron_ngpt.engine import muon
from megatron_ngpt.engine.gated import GatedAdamW
from megatron_ngpt.engine.muon import Muon
from megatron_ngpt.engine.optimizer import build_optimizer, set_learning_rate
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from tests.distributed import CPU

MODEL = ModelConfig(architecture="gpt", width=8, layers=1, heads=2, vocab_size=11)
OPTIM = OptimConfig(lr=0.5, betas=(0.8, 0.7), eps=1e-3, weight_decay=0.1)


def built(config):
    named = dict(NGPT(config.model).named_parameters())
    optimizer = build_optimizer(named.items(), parameter_table(config.model), config, CPU)
    return named, optimizer


def test_vectors_come_first_and_do_not_decay():
    """First, so that ZeRO's gradient buffers take their fp32; all matrices in one group, so that
    the projection is one all-reduce."""
    named, optimizer = built(Config(model=MODEL, optim=OPTIM))
    vectors, matrices = optimizer.param_groups
    assert {p.dim() for p in vectors["params"]} == {1}
    assert {p.dim() for p in matrices["params"]} == {2}
    assert len(vectors["params"]) + len(matrices["params"]) == len(named)
    assert (vectors["weight_decay"], matrices["weight_decay"]) == (0.0, 0.1)
    for group in (vectors, matrices):
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.7), 1e-3)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_learning_rates_of_nugpt():
    """Four times the reference's width, eight times its steps: arXiv 2604.27077, table 1."""
    model = ModelConfig(
        width=64, layers=1, heads=2, vocab_size=11, parametrisation="nugpt", reference_width=16
    )
    optim, train = replace(OPTIM, reference_steps=100), TrainConfig(steps=800)
    named, optimizer = built(Config(model=model, optim=optim, train=train))
    set_learning_rate(optimizer, 1.0)
    names = {id(p): name for name, p in named.items()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates["embed.weight"] == pytest.approx(0.5 * 0.5)
    assert rates["blocks.0.mlp.down.weight"] == pytest.approx(0.5 * 4**-0.75)
    assert rates["head.weight"] == pytest.approx(0.5 * 0.5 * 4**-0.75)
    assert rates["s_z.value"] == rates["blocks.0.attention.s_qk.value"] == pytest.approx(0.5)
    assert len(rates) == len(named)


def steps_of(optimizer_of, gradients, start=None):
    """Where some numbers end."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 11) if start is None else start)
    optimizer = optimizer_of([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_a_gate_of_one_is_adamw(size):
    gradients = size * torch.randn(5, 11, generator=torch.Generator().manual_seed(1))
    gradients[:, 3] = 0
    settings = {"lr": 0.1, "betas": (0.8, 0.7), "eps": 1e-3, "weight_decay": 0.1}
    ours = steps_of(lambda p: GatedAdamW(p, gate=1.0, **settings), gradients)
    theirs = steps_of(lambda p: torch.optim.AdamW(p, **settings), gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_gate_by_its_formula():
    """One step from zero averages: m / d is the gradient's sign, d its size."""
    gradient = torch.tensor([1e-6, -1e-3, 1e-2, 5.0, 0.0])
    parameter = torch.nn.Parameter(torch.zeros(5))
    optimizer = GatedAdamW([parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-3, gate=0.5)
    parameter.grad = gradient
    optimizer.step()
    size = gradient.abs()
    expected = -0.1 * gradient.sign() * (size / 1e-3).sqrt() / (1 + (size / 1e-3).sqrt())
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-9)


def muon_steps(shape, gradients, fixed_radius=False, **settings):
    """Where a matrix ends, and a vector beside it."""
    start = torch.Generator().manual_seed(3)
    matrix, vector = (torch.nn.Parameter(torch.randn(s, generator=start)) for s in (shape, (7,)))
    groups = [
        {"params": [vector], "muon": False, "weight_decay": 0.0},
        {"params": [matrix], "muon": True, "weight_decay": 0.1},
    ]
    optimizer = Muon(groups, 0.01, (0.8, 0.7), 1e-3, 0.9, fixed_radius)
    for gradient in gradients:
        matrix.grad, vector.grad = gradient.clone(), gradient.flatten()[:7].clone()
        optimizer.step()
    assert set(optimizer.state[matrix]) == {"exp_avg"}
    return matrix.detach(), vector.detach()


SHAPES = [(12, 12), (40, 12), (12, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_torchs(shape, monkeypatch):
    """In bf16 as theirs to its last bit or so; in fp32 as close as bf16 is. AdamW has the rest."""
    gradients = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    theirs = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    start = theirs.detach().clone()
    optimizer = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        theirs.grad = gradient.clone()
        optimizer.step()
    moved = (theirs.detach() - start).norm()
    ours, vector = muon_steps(shape, gradients)
    assert (ours - theirs).norm() < 0.02 * moved
    plain = steps_of(
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.7), eps=1e-3, weight_decay=0.0),
        gradients.flatten(1)[:, :7],
        vector_start(shape),
    )
    assert torch.equal(vector, plain)
    exact = muon.orthogonal
    monkeypatch.setattr(muon, "orthogonal", lambda m, _: exact(m, torch.bfloat16))
    assert (muon_steps(shape, gradients)[0] - theirs).norm() < 1e-3 * moved


def vector_start(shape):
    start = torch.Generator().manual_seed(3)
    return [torch.randn(s, generator=start) for s in (shape, (7,))][1]


@pytest.mark.parametrize("shape", SHAPES)
def test_muonh_turns_by_its_learning_rate_and_keeps_the_radius(shape):
    gradients = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    after, _ = muon_steps(shape, gradients, fixed_radius=True)
    radius = start.norm()
    assert float(after.norm()) == pytest.approx(float(radius), rel=1e-6)
    update = muon.orthogonal(gradients[0], torch.float32)
    expected = start - 0.01 * radius * update / update.norm()
    torch.testing.assert_close(after, expected * (radius / expected.norm()))


def test_learning_rates_of_muon():
    """Matrices of blocks at lr, the rest at adam_lr, both along the schedule."""
    optim = replace(OPTIM, optimizer="muon", adam_lr=0.125)
    named, optimizer = built(Config(model=MODEL, optim=optim))
    set_learning_rate(optimizer, 0.25)
    names = {id(p): name for name, p in named.items()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    for name, rate in rates.items():
        hidden = name.startswith("blocks.") and "norm" not in name
        assert rate == (0.25 if hidden else 0.0625), name
