"""Differential attention and the linear ensemble against their definitions, map by map in fp64."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.interop import microsoft
from megatron_ngpt.model.attention import build_attention
from megatron_ngpt.model.attention.differential import lambda_init
from megatron_ngpt.model.spec import ensemble_start
from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.ops.hypersphere import unit
from megatron_ngpt.ops.rope import rotary_table, rotate

B, T, LAYER = 2, 7, 3
BASE = ModelConfig(width=24, layers=5, heads=6, kv_heads=3, head_dim=8, vocab_size=19)
KINDS = {
    f"{architecture} {kind} {maps or ''}": replace(
        BASE, architecture=architecture, attention=kind, maps=maps, map_dim=0, head_norm_eps=0.0
    )
    for architecture in ("ngpt", "gpt")
    for kind, maps in (("differential", 0), ("ensemble", 2), ("ensemble", 4))
}


@pytest.fixture(params=KINDS)
def model(request):
    """Six heads that share three key heads."""
    return KINDS[request.param]


def built(model, attend=sdpa_attention):
    """Attention of block 3 with random parameters, the gain around 1."""
    attention = build_attention(model, attend, LAYER)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in attention.named_parameters():
        parameter.data.normal_(0.0, 0.4, generator=generator)
        if "gain" in name or "s_qk" in name:
            parameter.data += 1
    return attention


def inputs(model):
    x = torch.randn(B, T, model.width, generator=torch.Generator().manual_seed(8))
    return x, rotary_table(torch.arange(T), model.map_dim, model.rope_theta)


def weights(attention, model):
    """Weight of every map, by the formulas of the papers."""
    mix = attention.mix
    if model.attention == "ensemble":
        return [math.tanh(w) * mix.scale.item() for w in mix.weight.tolist()]
    first, second = (mix.query_1 * mix.key_1).sum(), (mix.query_2 * mix.key_2).sum()
    start = 0.8 - 0.6 * math.exp(-0.3 * LAYER)
    return [1.0, -(first.exp() - second.exp() + start).item()]


def key_of(model, head, m):
    """Which of the K M key heads map m of a head attends with."""
    shared = model.heads // model.kv_heads
    if model.attention == "differential":  # Microsoft: the 2 N query heads share keys in order
        return (2 * head + m) // shared
    return head // shared * model.maps + m


def query_of(model, head, m):
    """Which of the N M query heads is map m of a head."""
    shared = model.heads // model.kv_heads
    if model.attention == "differential":
        return 2 * head + m
    key, place = divmod(head, shared)
    return (key * model.maps + m) * shared + place


def by_definition(attention, model, x, rotary):
    """softmax(q_m k_m) for every head and map, mixed, times v, normed; fp64."""
    J, H = model.map_dim, model.head_dim
    q = rotate(attention.query(x).unflatten(-1, (-1, J)), rotary).double()
    k = rotate(attention.key(x).unflatten(-1, (-1, J)), rotary).double()
    v = attention.value(x).unflatten(-1, (-1, H)).double()
    scale = J**-0.5
    if model.is_ngpt:
        q, k, scale = attention.s_qk().view(-1, J) ** 2 * unit(q), unit(k), J**0.5
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    heads = []
    for n in range(model.heads):
        combined = 0
        for m, weight in enumerate(weights(attention, model)):
            one, other = q[:, :, query_of(model, n, m)], k[:, :, key_of(model, n, m)]
            logits = (scale * one @ other.mT).masked_fill(hidden, -torch.inf)
            combined = combined + weight * logits.softmax(-1)
        y = combined @ v[:, :, n * model.kv_heads // model.heads]
        normed = y / (y.square().mean(-1, keepdim=True) + model.head_norm_eps).sqrt()
        heads.append(normed * attention.head_norm.gain())
    factor = 1 - lambda_init(LAYER) if model.attention == "differential" else 1.0
    return factor * torch.cat(heads, -1) @ attention.output.weight.double().mT


def test_a_kind_is_its_definition(model):
    attention = built(model)
    x, rotary = inputs(model)
    expected = by_definition(attention, model, x, rotary)
    # the norm divides by differences of maps: a few roundings become a few dozen
    torch.testing.assert_close(attention(x, rotary).double(), expected, rtol=0, atol=2e-5)


def test_gradients_are_those_of_the_definition(model):
    attention = built(model)
    x, rotary = inputs(model)
    x.requires_grad_()
    direction = torch.randn(B, T, model.width, generator=torch.Generator().manual_seed(9))
    wanted = [x, *(p for name, p in attention.named_parameters() if "mix" not in name)]
    expected = torch.autograd.grad(
        (by_definition(attention, model, x, rotary) * direction).sum(), wanted
    )
    found = torch.autograd.grad((attention(x, rotary) * direction).sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_nothing_is_as_large_as_tokens_squared(model):
    """Everything goes through the attention function, in one call, queries as wide as values."""
    calls = []

    def attend(q, k, v, scale, documents):
        calls.append((q.shape, k.shape, v.shape))
        return sdpa_attention(q, k, v, scale, documents)

    attention = built(model, attend)
    attention(*inputs(model))
    M, H = model.maps, model.head_dim
    assert calls == [((B, T, 6 * M, H), (B, T, 3 * M, H), (B, T, 3 * M, H))]


@pytest.mark.parametrize("maps", [2, 3, 4, 5])
def test_an_ensemble_starts_with_signs_that_alternate_and_a_first_token_that_counts(maps):
    start = ensemble_start(maps)
    assert [value > 0 for value in start] == [m % 2 == 0 for m in range(maps)]
    assert sum(math.tanh(value) for value in start) > 0.09


@pytest.mark.parametrize("kind", ["differential", "ensemble"])
def test_kinds_have_as_many_parameters_as_standard_attention(kind):
    standard = ModelConfig(width=1024, heads=8)
    other = replace(standard, attention=kind, maps=0, map_dim=0)
    counts = [
        sum(p.numel() for p in build_attention(m, sdpa_attention, 0).parameters())
        for m in (standard, other)
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


def test_differential_attention_is_microsofts(shared):
    """Output and gradient of the input of their module, grouped queries and RoPE included."""
    path = shared / "golden/differential_attention.safetensors"
    trace, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    model = microsoft.model_config(facts)
    attention = build_attention(model, sdpa_attention, facts["depth"])
    theirs = {n.removeprefix("weights."): t for n, t in trace.items() if n.startswith("weights.")}
    attention.load_state_dict(microsoft.from_microsoft(theirs))
    x = trace["x"].requires_grad_()
    y = attention(x, rotary_table(torch.arange(x.shape[1]), model.map_dim, model.rope_theta))
    y.square().mean().backward()
    # the norm of a difference of maps enlarges roundings
    torch.testing.assert_close(y, trace["y"], rtol=0, atol=1e-5)
    assert (x.grad - trace["dx"]).abs().max() <= 1e-5 * trace["dx"].abs().max()
