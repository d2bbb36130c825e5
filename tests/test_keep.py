"""Blocks computed again but for some ops: the same gradients, and these ops run once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.config.run import RecomputeOp
from megatron_ngpt.keep import OPS, op
from megatron_ngpt.model.again import computed_again
from megatron_ngpt.model.ngpt import NGPT

LAYERS = 3
ATTENTION = OPS["attention"][0]


class Counts(TorchDispatchMode):
    """How often each of torch's operators ran."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.name()] = self.of.get(func.name(), 0) + 1
        return func(*args, **kwargs or {})


def gradients(keep, recompute=True, tile=0, offload=False, **settings):
    """Loss and gradients of a model, and how often torch's operators ran."""
    torch.manual_seed(0)
    shape = {"width": 32, "layers": LAYERS, "heads": 4, "kv_heads": 2, "vocab_size": 50}
    model = NGPT(ModelConfig(**shape | settings)).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.recompute, model.keep, model.offload = recompute, keep, offload
    for block in model.blocks.values():
        block.mlp_tile = tile
    tokens = torch.randint(50, (2, 25))
    with Counts() as counts:
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())], counts.of


@pytest.mark.parametrize("attention", ["standard", "differential", "ensemble"])
@pytest.mark.parametrize("architecture", ["ngpt", "gpt"])
@pytest.mark.parametrize("keep", [("attention",), ("matmul",), tuple(OPS)], ids="+".join)
def test_gradients_are_the_same_to_the_last_bit(architecture, attention, keep):
    kind = {"architecture": architecture, "attention": attention, "value_residual": True}
    plain, _ = gradients((), recompute=False, **kind)
    for settings in ({}, {"offload": True}):
        for ours, theirs in zip(gradients(keep, **kind, **settings)[0], plain, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("keep", [(), tuple(OPS)])
def test_tiles_are_computed_again_whatever_is_kept(keep):
    expected, _ = gradients((), recompute=False, tile=7)
    for ours, theirs in zip(gradients(keep, tile=7)[0], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_only_what_is_not_kept_runs_again():
    """A block has 4 products with matrices in attention and 3 in the MLP, the head one more; each
    runs backward as two. Of the head's three, two write where told."""
    plain, forward = gradients((), recompute=False)[1], 7 * LAYERS
    assert (plain[ATTENTION], plain["aten::mm"]) == (LAYERS, 3 * forward + 1)
    again = gradients(())[1]
    assert again[ATTENTION] == 2 * LAYERS
    assert again["aten::mm"] == plain["aten::mm"] + forward
    attention = gradients(("attention",))[1]
    assert attention[ATTENTION] == LAYERS
    assert attention["aten::mm"] == again["aten::mm"]
    matmul = gradients(("matmul",))[1]
    assert matmul[ATTENTION] == 2 * LAYERS
    assert matmul["aten::mm"] == plain["aten::mm"]


def test_the_configuration_knows_the_same_names():
    assert RecomputeOp.__args__ == tuple(OPS)


def test_what_belongs_to_an_op_is_not_kept_for_itself():
    """An op made of others is one: its parts run once, and nothing of them is kept."""
    made = []

    def compound(x):
        made.append("compound")
        return x @ x

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            out = op("all_to_all", lambda: compound(x))
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    x = torch.eye(3, requires_grad=True)
    computed_again(
        lambda x: Function.apply(x) @ x, x, keep=("all_to_all", "matmul")
    ).sum().backward()
    assert made == ["compound"]
