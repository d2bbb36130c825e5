"""GatedAdamW against its formula in fp64 and against AdamW, which it contains."""

import math

import pytest
import torch

from megatron_ngpt.engine.gated_adamw import GatedAdamW

STEPS = 12


def gradients():
    generator = torch.Generator().manual_seed(3)
    sizes = 10.0 ** torch.arange(-9, 1).float()  # from far below the gate to far above
    return [torch.randn(10, generator=generator) * sizes for _ in range(STEPS)]


def stepped(build):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 10))
    optimizer = build([weight])
    for gradient in gradients():
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer


def test_power_1_is_adamw_with_the_sum_of_both_epsilons():
    options = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.3}
    ours, mine = stepped(
        lambda w: GatedAdamW(w, gate_power=1.0, gate_eps=1e-3, eps=1e-8, **options)
    )
    theirs, other = stepped(lambda w: torch.optim.AdamW(w, eps=1e-3 + 1e-8, **options))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)
    for name, value in other.state_dict()["state"][0].items():
        assert torch.allclose(mine.state_dict()["state"][0][name], value, rtol=1e-6), name


@pytest.mark.parametrize("power", [0.25, 0.5, 2.0])
def test_formula(power):
    lr, beta1, beta2, eps, half_open, decay = 0.01, 0.8, 0.9, 1e-8, 1e-4, 0.3
    ours, _ = stepped(
        lambda w: GatedAdamW(w, lr, (beta1, beta2), eps, power, half_open, weight_decay=decay)
    )
    for place in range(10):
        w, m, v = float(torch.linspace(-1, 1, 10)[place]), 0.0, 0.0
        for t, gradient in enumerate(gradients(), start=1):
            g = float(gradient[place])
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            d = math.sqrt(v / (1 - beta2**t)) + eps
            gate = 1 / (1 + math.exp(-power * math.log(d / half_open)))
            w = w * (1 - lr * decay) - lr * gate * m / (1 - beta1**t) / d
        assert float(ours[place]) == pytest.approx(w, abs=2e-6)


def test_small_gradients_move_a_weight_less_and_large_ones_as_far():
    gated, _ = stepped(lambda w: GatedAdamW(w, 0.01, gate_eps=1e-4))
    plain, _ = stepped(lambda w: torch.optim.AdamW(w, 0.01, betas=(0.9, 0.95), weight_decay=0))
    moved = (gated - torch.linspace(-1, 1, 10)) / (plain - torch.linspace(-1, 1, 10))
    assert moved[0] < 0.05
    assert moved[-1] == pytest.approx(1, abs=0.02)
