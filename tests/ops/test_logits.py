import torch

from megatron_ngpt.ops.logits import preconditioned
from tests.ops.compare import normal


def test_values_and_gradients_by_their_formula():
    u, scale = normal(2, 3, 7).requires_grad_(), (2 + normal(7, seed=1).abs()).requires_grad_()
    grad = normal(2, 3, 7, seed=2)
    z = preconditioned(u, scale, scale.detach().mean())
    assert torch.equal(z, u * scale)
    z.backward(grad)
    assert torch.allclose(u.grad, grad * scale.detach() / scale.detach().mean())
    assert torch.allclose(scale.grad, (grad * u.detach()).sum((0, 1)), atol=1e-6)


def test_the_gradient_does_not_know_the_size_of_the_scale():
    gradients = []
    for size in (1.0, 50.0):
        u = normal(4, 7).requires_grad_()
        scale = size * torch.linspace(1, 2, 7)
        preconditioned(u, scale, scale.mean()).backward(normal(4, 7, seed=2))
        gradients.append(u.grad)
    assert torch.allclose(*gradients)
