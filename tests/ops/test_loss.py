"""The head and its cross-entropy against both written down, in fp64."""

import math

import pytest
import torch
from torch.utils._pytree import tree_iter

from megatron_ngpt.config import IGNORED
from megatron_ngpt.ops.logits import precondition
from megatron_ngpt.ops.loss import Logits, head_loss
from tests.ops.compare import assert_same_maths, normal


def exact(h, weight, scale, targets):
    logits = h @ weight.T * scale
    chosen = logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return ((logits.logsumexp(-1) - chosen) * (targets != IGNORED)).mean()


def some_targets(shape, size):
    targets = torch.randint(size, shape, generator=torch.Generator().manual_seed(1))
    if targets.numel() > 2:
        targets.view(-1)[1] = IGNORED
    return targets


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 5, 33), (3, 7, 1030)])
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_value_and_gradients(shape, size, rows, scaled, dtype, device, ops):
    batch, length, vocab = shape
    targets = some_targets((batch, length), vocab)
    h, weight = normal(batch, length, 9).to(dtype), normal(vocab, 9, seed=1).to(dtype)
    scale = size * (1 + normal(vocab, seed=2).abs())
    inputs = [h, weight, scale] if scaled else [h, weight]
    found = assert_same_maths(
        lambda h, w, s=None: head_loss(h, targets.to(device), Logits(w, s, rows=rows, ops=ops)),
        lambda h, w, s=1.0: exact(h, w, s, targets),
        inputs,
        dtype,
        device,
    )
    assert found.dtype == torch.float32


def test_one_number_scales_all(device, ops):
    targets = some_targets((2, 3), 33)
    assert_same_maths(
        lambda h, w, s: head_loss(h, targets.to(device), Logits(w, s, ops=ops)),
        lambda h, w, s: exact(h, w, s, targets),
        [normal(2, 3, 9), normal(33, 9, seed=1), torch.tensor([3.0])],
        torch.float32,
        device,
    )


def test_preconditioning_changes_the_gradient_of_cosines_alone(ops):
    """As if s_z were 1 on average on the way back, while its own gradient is the usual one."""
    h, weight, targets = normal(2, 3, 9), normal(33, 9, seed=1), some_targets((2, 3), 33)
    scale = 2 + normal(33, seed=2).abs()
    slope = precondition(scale, scale.mean())
    z = (h @ weight.T * scale).requires_grad_()
    exact(z, torch.eye(33), 1.0, targets).backward()
    mine = [x.clone().requires_grad_() for x in (h, weight, scale)]
    head_loss(mine[0], targets, Logits(mine[1], mine[2], slope, ops=ops)).backward()
    grad_u = z.grad * scale / scale.mean()
    assert torch.allclose(mine[0].grad, grad_u @ weight, atol=1e-6)
    assert torch.allclose(mine[1].grad, grad_u.flatten(0, 1).T @ h.flatten(0, 1), atol=1e-6)
    assert torch.allclose(mine[2].grad, (z.grad * (h @ weight.T)).sum((0, 1)), atol=1e-6)


def test_each_token_and_no_gradient_agree_with_the_mean(ops):
    h, weight, targets = normal(2, 5, 9), normal(33, 9, seed=1), some_targets((2, 5), 33)
    head = Logits(weight.requires_grad_(), 2 + normal(33, seed=2).abs(), rows=3, ops=ops)
    mean = head_loss(h, targets, head)
    losses, hits = head_loss(h, targets, head, each=True)
    logits = h @ weight.T * head.scale
    assert torch.equal(hits.bool(), (logits.argmax(-1) == targets))
    assert losses.view(-1)[1] == 0
    assert float(losses.mean()) == pytest.approx(float(mean), abs=1e-6)
    with torch.no_grad():
        assert float(head_loss(h, targets, head)) == pytest.approx(float(mean), abs=1e-6)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen, ops):
    h, weight, targets = normal(2, 5, 9), normal(33, 9, seed=1), some_targets((2, 5), 33)
    [weight, h][frozen].requires_grad_()
    head_loss(h, targets, Logits(weight, ops=ops)).backward()
    assert [weight, h][1 - frozen].grad is None
    assert [weight, h][frozen].grad.any()


def test_nothing_as_large_as_all_logits_is_made(ops):
    made = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            made.extend(t.numel() for t in tree_iter(out) if isinstance(t, torch.Tensor))
            return out

    h, weight = normal(4, 50, 3).requires_grad_(), normal(400, 3, seed=1).requires_grad_()
    with Sizes():
        head_loss(h, some_targets((4, 50), 400), Logits(weight, rows=20, ops=ops)).backward()
    assert max(made) == 20 * 400


def test_equal_logits_cost_the_log_of_the_vocabulary(ops):
    """In fp32 also for bf16 logits: log(50000) has no bf16 value."""
    h, weight = torch.zeros(1, 3, 4, dtype=torch.bfloat16), torch.ones(50000, 4).bfloat16()
    loss = head_loss(h, torch.tensor([[0, 7, 49999]]), Logits(weight, ops=ops))
    assert loss.item() == pytest.approx(math.log(50000), abs=1e-5)


def test_huge_logits_stay_finite(ops):
    h, weight = torch.ones(1, 1, 1), torch.tensor([[1e4], [0.0], [-1e4]])
    for target, loss in ((0, 0.0), (2, 2e4)):
        assert head_loss(h, torch.tensor([[target]]), Logits(weight, ops=ops)).item() == loss


def test_a_logit_that_is_no_number_is_a_loss_that_is_none(ops):
    h, weight = normal(1, 3, 4), normal(50, 4, seed=1)
    h[0, 1, 2] = float("nan")
    assert head_loss(h, torch.tensor([[1, 2, 3]]), Logits(weight, ops=ops)).isnan()
