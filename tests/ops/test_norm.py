import pytest
import torch

from megatron_ngpt.ops.norm import RMSNorm
from tests.ops.compare import assert_same_maths, normal


@pytest.mark.parametrize("shape", [(1, 2), (5, 33), (2, 3, 257)])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm(shape, eps, dtype, device):
    norm = RMSNorm(shape[-1], eps).to(device)

    def ours(x, weight):
        return torch.func.functional_call(norm, {"gain.value": weight}, x)

    def exact(x, weight):
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    inputs = [(3 * normal(*shape)).to(dtype), normal(shape[-1], seed=1)]
    assert assert_same_maths(ours, exact, inputs, dtype, device).dtype == dtype


def test_rms_norm_starts_as_the_plain_one_and_keeps_zeros():
    assert RMSNorm(4, 1e-6)(torch.zeros(2, 4)).tolist() == [[0.0] * 4] * 2
    assert RMSNorm(4, 0.0)(torch.full((4,), -3.0)).tolist() == [-1.0] * 4
