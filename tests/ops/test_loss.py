import math

import pytest
import torch

from megatron_ngpt.ops.loss import cross_entropy
from tests.ops.compare import assert_same_maths, normal


def exact(logits, targets):
    chosen = logits.gather(-1, targets[..., None])[..., 0]
    return (logits.logsumexp(-1) - chosen).mean()


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 5, 33), (3, 7, 1001)])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_cross_entropy(shape, size, dtype, device):
    targets = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(1))
    found = assert_same_maths(
        lambda x: cross_entropy(x, targets.to(device)),
        lambda x: exact(x, targets),
        [(size * normal(*shape)).to(dtype)],
        dtype,
        device,
    )
    assert found.dtype == torch.float32


def test_equal_logits_cost_the_log_of_the_vocabulary():
    """In fp32 also for bf16 logits: log(50000) has no bf16 value."""
    logits = torch.zeros(1, 3, 50000, dtype=torch.bfloat16)
    loss = cross_entropy(logits, torch.tensor([[0, 7, 49999]]))
    assert loss.item() == pytest.approx(math.log(50000), abs=1e-5)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[[1e4, 0.0, -1e4]]])
    assert cross_entropy(logits, torch.tensor([[0]])).item() == 0.0
    assert cross_entropy(logits, torch.tensor([[2]])).item() == 2e4
