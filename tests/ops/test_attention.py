import shutil

import pytest
import torch

from megatron_ngpt.extras import available
from megatron_ngpt.ops import attention
from megatron_ngpt.ops.attention import (
    cpp_attention,
    flash_attention,
    pick_attention,
    sdpa_attention,
)
from megatron_ngpt.ops.fused.build import NotBuilt
from tests.ops.compare import assert_same_maths, normal


def exact_attention(q, k, v, scale):
    """Plain softmax; query t of T stands at position S - T + t."""
    T, S = q.shape[1], k.shape[1]
    repeat = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
    scores = scale * torch.einsum("btnh,bsnh->bnts", q, k)
    future = torch.arange(S) > torch.arange(T)[:, None] + S - T
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("bnts,bsnh->btnh", weights, v)


SHAPES = {  # T, S, N, K, H
    "one token": (1, 1, 2, 2, 8),
    "square": (7, 7, 3, 3, 10),
    "grouped": (9, 9, 6, 2, 16),
    "multi-query": (5, 5, 4, 1, 8),
    "one token after a cache": (1, 6, 4, 2, 8),
    "chunk after a cache": (3, 8, 4, 2, 8),
    "long": (130, 130, 2, 1, 32),
    "several blocks": (530, 530, 2, 1, 20),
}


def inputs(T, S, N, K, H, dtype):
    q, k, v = normal(2, T, N, H), normal(2, S, K, H, seed=1), normal(2, S, K, H, seed=2)
    return [x.to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("attend", [sdpa_attention, cpp_attention])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_it_is_causal_softmax(attend, shape, scale, dtype, device):
    if attend is cpp_attention and (device.type != "cpu" or not shutil.which("g++")):
        pytest.skip("C++ on CPUs")
    q, k, v = inputs(*SHAPES[shape], dtype)
    # A query with one key has no gradient: it is (dO . v - dO . O) scale k, and O = v. The two
    # products need not be summed in the same order (torch 2.14 does not).
    product = normal(*q.shape, seed=99).norm(dim=-1).max() * v.float().norm(dim=-1).max()
    found = assert_same_maths(
        lambda q, k, v: attend(q, k, v, scale),
        lambda q, k, v: exact_attention(q, k, v, scale),
        [q, k, v],
        dtype,
        device,
        cancelled=float(scale * product * k.float().abs().max()) if k.shape[1] == 1 else 0.0,
    )
    assert found.dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [n for n in SHAPES if SHAPES[n][4] % 8 == 0])
def test_flash_is_causal_softmax(shape):
    if not (torch.cuda.is_available() and available("flash_attn")):
        pytest.skip("no GPU or no flash-attn here")
    assert_same_maths(
        lambda q, k, v: flash_attention(q, k, v, 0.3),
        lambda q, k, v: exact_attention(q, k, v, 0.3),
        inputs(*SHAPES[shape], torch.bfloat16),
        torch.bfloat16,
        torch.device("cuda"),
    )


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("installed", [True, False])
def test_auto_takes_flash_only_where_it_fits(monkeypatch, installed):
    monkeypatch.setattr(attention, "available", lambda *_: installed)
    monkeypatch.setattr(attention, "require", lambda *_: None)
    best = flash_attention if installed else sdpa_attention
    assert pick_attention("auto", GPU, torch.bfloat16) is best
    assert pick_attention("auto", GPU, torch.float32) is sdpa_attention
    monkeypatch.setattr(attention.in_cpp, "load", lambda: None)
    assert pick_attention("auto", CPU, torch.bfloat16) is cpp_attention
    assert pick_attention("sdpa", GPU, torch.bfloat16) is sdpa_attention


@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.bfloat16), (GPU, torch.float32)])
def test_flash_is_refused_where_it_cannot_run(device, dtype):
    with pytest.raises(ValueError, match=rf"flash needs .* not {device.type} and {dtype}: set"):
        pick_attention("flash", device, dtype)


def test_missing_flash_is_told_when_asked_for():
    if available("flash_attn"):
        pytest.skip("flash-attn is installed")
    with pytest.raises(ModuleNotFoundError, match=r"megatron-ngpt\[gpu\]"):
        pick_attention("flash", GPU, torch.bfloat16)


def test_without_a_compiler_torch_s_attention_does_it(monkeypatch):
    def none():
        raise NotBuilt("no compiler")

    monkeypatch.setattr(attention.in_cpp, "load", none)
    assert pick_attention("auto", CPU, torch.float32) is sdpa_attention
    with pytest.raises(ValueError, match=r"cpp: no compiler; or set engine\.attention to sdpa"):
        pick_attention("cpp", CPU, torch.float32)
    with pytest.raises(ValueError, match="cpp runs on CPUs, not on cuda"):
        pick_attention("cpp", GPU, torch.float32)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("threads", [1, 3])
def test_what_lies_apart_in_memory_and_threads_change_no_bit(threads):
    q, k, v = (x.requires_grad_() for x in inputs(60, 60, 4, 2, 12, torch.float32))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    apart = [
        x.detach().transpose(1, 3).contiguous().transpose(1, 3).requires_grad_() for x in (q, k, v)
    ]
    grad = normal(2, 4, 60, 12, seed=3).transpose(1, 2)
    out = cpp_attention(*apart, 0.3)
    out.backward(grad)
    torch.set_num_threads(before)
    expected = cpp_attention(q, k, v, 0.3)
    expected.backward(grad.contiguous())
    assert torch.equal(out, expected)
    for mine, theirs in zip(apart, (q, k, v), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_query_that_is_no_number_gets_no_number():
    q, k, v = inputs(60, 60, 2, 2, 12, torch.float32)
    q[0, 50, 1, 3] = float("nan")
    out = cpp_attention(q, k, v, 0.3)
    assert out[0, 50, 1].isnan().all()
    assert out.isnan().sum() == 12
