import pytest
import torch

from megatron_ngpt.ops.linear import Embedding, Linear, all_of
from tests.ops.compare import assert_close, assert_same_maths, normal


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_linear_computes_in_the_dtype_of_its_input(weight_dtype, dtype, device):
    layer = Linear(33, 7).to(device)

    def ours(x, weight):
        layer.weight = torch.nn.Parameter(weight.detach())
        return torch.func.functional_call(layer, {"weight": weight}, x)

    inputs = [normal(2, 5, 33).to(dtype), normal(7, 33, seed=1).to(dtype).to(weight_dtype)]
    coarser = torch.bfloat16 if torch.bfloat16 in (dtype, weight_dtype) else torch.float32
    found = assert_same_maths(ours, lambda x, w: x @ w.T, inputs, coarser, device)
    assert found.dtype == dtype


def test_a_master_and_its_rounded_copy_are_the_same_computation():
    """ZeRO 0 and 3 keep fp32 weights, ZeRO 1 and 2 bf16 copies: no result may tell which."""
    master, copy = Linear(33, 7), Linear(33, 7)
    master.weight.data = normal(7, 33)
    copy.weight.data = master.weight.data.bfloat16()
    x = normal(5, 33, seed=1).bfloat16()
    assert torch.equal(master(x), copy(x))
    master, copy = Embedding(9, 4, torch.bfloat16), Embedding(9, 4, torch.bfloat16)
    master.weight.data = normal(9, 4)
    copy.weight.data = master.weight.data.bfloat16()
    tokens = torch.arange(9).view(3, 3)
    assert torch.equal(master(tokens), copy(tokens))


def test_gradients_of_a_master_are_those_of_a_cast_in_autograd():
    layer, x = Linear(33, 7), normal(2, 5, 33).bfloat16()
    layer.weight.data = normal(7, 33, seed=1)
    weight = layer.weight.detach().clone().requires_grad_()
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(mine).sum().backward()
    torch.nn.functional.linear(theirs, weight.bfloat16()).sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    assert torch.equal(layer.weight.grad, weight.grad)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_weight_s_size_is_kept_for_the_backward(weight_dtype):
    """Casts of all layers would add up to a whole model on every rank of ZeRO-3."""
    layer, kept = Linear(33, 7).to(weight_dtype), []
    x = normal(2, 5, 33).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    own = layer.weight.untyped_storage().data_ptr()
    assert [t for t in kept if t.numel() == 7 * 33 and t.untyped_storage().data_ptr() != own] == []
    assert kept


def test_embedding_looks_up_rows_and_adds_up_their_gradients(dtype, device):
    table = Embedding(5, 3, dtype).to(device)
    table.weight.data = normal(5, 3).to(device)
    tokens = torch.tensor([[4, 0, 4], [4, 1, 0]], device=device)
    found = table(tokens)
    assert torch.equal(found.cpu(), table.weight.data.cpu().to(dtype)[tokens.cpu()])
    found.sum().backward()
    assert table.weight.grad[:, 0].tolist() == [2.0, 1.0, 0.0, 0.0, 3.0]
    assert table.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("tokens", [3, 300])
def test_several_at_once_are_each_alone(tokens, device):
    """One product of many tokens, several of few; a frozen one among them gets no gradient."""
    maps = [Linear(33, size).to(device) for size in (8, 3, 3)]
    x = normal(2, tokens, 33).to(device).requires_grad_()
    for number, one in enumerate(maps):
        one.weight.data = normal(*one.weight.shape, seed=number).to(device)
    maps[1].weight.requires_grad_(False)
    found = []
    for made in (all_of(x, maps), [one(x) for one in maps]):
        sum((y * y).sum() for y in made).backward()
        found.append(
            [y.detach() for y in made] + [x.grad, maps[0].weight.grad, maps[2].weight.grad]
        )
        assert maps[1].weight.grad is None
        x.grad = maps[0].weight.grad = maps[2].weight.grad = None
    for ours, alone in zip(*found, strict=True):
        assert_close(ours, alone.double().cpu(), torch.float32)
