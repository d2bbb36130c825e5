import pytest
import torch

from megatron_ngpt.ops.norm import RMSNorm
from tests.ops.compare import assert_same_maths, normal


@pytest.mark.parametrize("shape", [(1, 2), (5, 33), (2, 3, 257)])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm(shape, eps, dtype, device, ops):
    norm = RMSNorm(shape[-1], eps, ops).to(device)

    def ours(x, weight):
        return torch.func.functional_call(norm, {"gain.value": weight}, x)

    def exact(x, weight):
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    inputs = [(3 * normal(*shape)).to(dtype), normal(shape[-1], seed=1)]
    assert assert_same_maths(ours, exact, inputs, dtype, device).dtype == dtype


def test_both_gradients_of_what_is_normed_become_one(dtype, device, ops):
    norm = RMSNorm(33, 1e-6, ops).to(device)
    norm.gain.value.data = normal(33, seed=1).to(device)
    gain = norm.gain.value.detach().cpu().double()

    def ours(x):
        same, normed = norm.beside(x)
        return 0.5 * same + normed * 3

    def exact(x):
        return 0.5 * x + 3 * gain * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    assert_same_maths(ours, exact, [(3 * normal(5, 33)).to(dtype)], dtype, device)


def test_rms_norm_starts_as_the_plain_one_and_keeps_zeros():
    assert RMSNorm(4, 1e-6)(torch.zeros(2, 4)).tolist() == [[0.0] * 4] * 2
    assert RMSNorm(4, 0.0)(torch.full((4,), -3.0)).tolist() == [-1.0] * 4
