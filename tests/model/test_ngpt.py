from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from megatron_ngpt.config import ModelConfig, ScaleConfig
from megatron_ngpt.model.attention import KeyValueCache
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.hypersphere import unit
from megatron_ngpt.ops.rope import for_both

TOKENS = torch.randint(19, (2, 9), generator=torch.Generator().manual_seed(4))


def test_no_token_sees_the_future(config, build):
    model, changed = build(config), TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 19
    before, after = model(TOKENS), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before - after)[:, 5:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("chunks", [[1] * 9, [5, 1, 1, 2], [4, 5]])
def test_decoding_with_a_cache_equals_the_full_forward(config, build, chunks):
    model = build(config)
    caches = [KeyValueCache() for _ in range(config.layers)]
    parts, at = [], 0
    for size in chunks:
        positions = torch.arange(at, at + size)
        parts.append(model(TOKENS[:, at : at + size], positions=positions, caches=caches))
        at += size
    assert caches[0].keys.shape == (2, 9, config.kv_heads * config.maps, config.map_dim)
    assert caches[0].values.shape == (2, 9, config.kv_heads, config.head_dim)
    # same sums in another order, logits of order 1
    assert torch.allclose(torch.cat(parts, 1), model(TOKENS), atol=5e-6)


def test_loss_is_the_mean_cross_entropy_of_the_logits(config, build):
    model, targets = build(config), TOKENS.roll(-1, 1)
    expected = F.cross_entropy(model(TOKENS).double().flatten(0, 1), targets.flatten())
    assert model(TOKENS, targets).item() == pytest.approx(expected.item(), abs=1e-6)


def test_only_distances_between_positions_matter(config, build):
    """With s_qk equal or paired: it comes after the rotation and tells dimensions apart."""
    model = build(replace(config, init_std=0.3))
    if config.scales_qk and not config.s_qk.paired:
        for block in model.blocks.values():
            block.attention.s_qk.value.data.fill_(0.3)
    plain = model(TOKENS)
    # another angle rounds elsewhere: up to 22 2^-24 each
    assert torch.allclose(model(TOKENS, positions=torch.arange(9) + 13), plain, atol=5e-5)
    assert torch.equal(model(TOKENS, positions=torch.arange(9).repeat(2, 1)), plain)
    assert not torch.allclose(model(TOKENS, positions=2 * torch.arange(9)), plain, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_are_unit_after_every_step(build, ngpt_config, dtype):
    model, seen = build(ngpt_config, dtype), []
    for block in model.blocks.values():
        for step in (block.attention_residual, block.mlp_residual):
            step.register_forward_hook(lambda *call: seen.append(call[-1]))
    logits = model(TOKENS)
    assert len(seen) == 2 * ngpt_config.layers
    for hidden in seen:
        assert hidden.dtype == dtype
        # fp32: two roundings; bf16: every component rounded by at most 2^-8 of itself
        limit = 2e-7 if dtype == torch.float32 else 2**-8
        assert (hidden.double().norm(dim=-1) - 1).abs().max() <= limit
    assert logits.dtype == torch.float32


def test_logits_of_ngpt_are_cosines_times_s_z(build, ngpt_config):
    model = build(ngpt_config)
    h = unit(torch.randn(3, ngpt_config.width, generator=torch.Generator().manual_seed(1)))
    cosines = F.cosine_similarity(h[:, None], model.head.weight[None], dim=-1)
    assert torch.allclose(model.logits(h), cosines * model.s_z(), atol=1e-6)


def test_queries_and_keys_meet_as_cosines_times_squared_s_qk(build, ngpt_config):
    """Attention logits are sqrt(J) s_qk^2 cos; the keys that are stored have length 1."""
    model, seen, J = build(ngpt_config), {}, ngpt_config.map_dim

    def attend(q, k, v, scale, documents):
        seen.update(q=q[..., :J], k=k, scale=scale)
        return v[:, :, :1].expand_as(q)

    attention = model.blocks["0"].attention
    attention.attend = attend
    model(TOKENS)
    assert seen["scale"] == J**0.5
    assert torch.allclose(seen["k"].norm(dim=-1), torch.ones(()), atol=1e-6)
    s_NJ = attention.s_qk().view(ngpt_config.heads * ngpt_config.maps, -1)
    if ngpt_config.s_qk.paired:
        s_NJ = for_both(s_NJ, ngpt_config.rotary_dim, ngpt_config.rope_style)
    assert torch.allclose((seen["q"] / s_NJ**2).norm(dim=-1), torch.ones(()), atol=1e-6)


def test_every_parameter_has_a_gradient(config, build):
    model = build(config)
    model(TOKENS, TOKENS.roll(-1, 1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bf16_activations_stay_close_to_fp32(config, build):
    exact, rounded = build(config)(TOKENS), build(config, torch.bfloat16)(TOKENS)
    # a handful of bf16 roundings (2^-8 of a value each) per layer
    assert (exact - rounded).abs().max() <= 0.05 * exact.abs().max()
    assert not torch.equal(exact, rounded)


def test_scales_start_at_what_the_configuration_says(ngpt_config):
    other = replace(
        ngpt_config, alpha_mlp=ScaleConfig(init=0.2, scale=0.5), s_z=ScaleConfig(init=3.0)
    )
    model = NGPT(other)
    assert model.blocks["1"].mlp_residual.alpha().tolist() == pytest.approx(
        [0.2] * ngpt_config.width
    )
    assert model.blocks["1"].attention_residual.alpha().tolist() == pytest.approx([0.05] * 24)
    assert model.s_z().tolist() == pytest.approx([3.0] * 19)


@torch.no_grad()
def test_positions_are_absolute_once_s_qk_is_learned():
    """s_qk scales queries and keys after their rotation; one number for all, or for both of a pair
    that turns together, changes nothing."""
    tokens, moved = torch.arange(12)[None], {}
    shape = {"width": 24, "layers": 2, "heads": 2, "vocab_size": 19, "ffn_width": 40}
    for kind in ("each", "shared", "paired"):
        s_qk = ScaleConfig(shared=kind == "shared", paired=kind == "paired")
        config = ModelConfig(**shape, s_qk=s_qk, s_z=ScaleConfig(init=10.0))
        model = NGPT(config)
        initialise(model, parameter_table(config), seed=1)
        for block in model.blocks.values():
            scale = next(block.attention.s_qk.parameters())
            scale.mul_(torch.linspace(0.5, 2.0, scale.numel()))
        far = model(tokens, positions=torch.arange(1000, 1012))
        moved[kind] = float((far - model(tokens)).abs().max())
    assert max(moved["shared"], moved["paired"]) < 1e-3 < 0.02 < moved["each"]
