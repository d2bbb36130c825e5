"""The Hugging Face model against ours: the same logits, and what transformers does with a model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    pipeline,
)
from transformers.utils import logging

from megatron_ngpt.hf import NGPTConfig, NGPTForCausalLM, NGPTModel, modeling_ngpt
from megatron_ngpt.hf.attention_ngpt import eager_attention
from megatron_ngpt.interop.export import CODE
from megatron_ngpt.interop.hf import our_name, their_name
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.train.generate import generate
from tests.hf.conftest import KINDS

logging.disable_progress_bar()
IDS = torch.randint(330, (2, 17), generator=torch.Generator().manual_seed(3))


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.fixture(params=KINDS)
def pair(request, exported):
    """Our model and its export loaded by transformers."""
    found = exported(request.param)
    return found.model, load(found.folder)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_are_ours(pair, attention):
    ours, theirs = pair
    theirs.set_attn_implementation(attention)
    # both in fp32, in nearly the same order
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_token_changes_no_logit_before_it(exported, kind):
    model, other = load(exported(kind).folder), IDS.clone()
    other[:, 9] = (other[:, 9] + 1) % 330
    one, two = model(IDS).logits, model(other).logits
    assert torch.equal(one[:, :9], two[:, :9])
    assert not torch.equal(one[:, 9], two[:, 9])


@pytest.mark.parametrize("kind", ["grouped", "differential", "gpt ensemble"])
@torch.no_grad()
def test_fused_kernels_get_what_they_ask_for(exported, kind):
    """As flash-attn is called: half precision alike, heads of equal width, no [T, T] mask."""

    def kernel(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        assert attention_mask is None
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert query.shape[-1] == key.shape[-1] == value.shape[-1] == module.head_dim
        assert query.shape[1] == key.shape[1] * module.num_key_value_groups
        mask = torch.ones(query.shape[2], key.shape[2]).tril().log()
        return eager_attention(module, query, key, value, mask, scaling)

    found = exported(kind)
    AttentionInterface.register("a_kernel", kernel)
    AttentionMaskInterface.register("a_kernel", lambda *args, **kwargs: None)
    theirs = load(found.folder, dtype=torch.bfloat16, attn_implementation="a_kernel")
    logits, exact = theirs(IDS).logits, found.model(IDS)
    assert 0 < (logits - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grouped", "differential", "ensemble"])
@torch.no_grad()
def test_flex_attention(exported, kind):
    found = exported(kind)
    theirs = load(found.folder, attn_implementation="flex_attention")
    torch.testing.assert_close(theirs(IDS).logits, found.model(IDS), rtol=0, atol=1e-5)


def test_loss_and_gradients_are_ours(pair):
    ours, theirs = pair
    # preconditioning is a matter of training here, not of the loss
    ours = NGPT(replace(ours.config, logit_preconditioning=False))
    ours.load_state_dict(pair[0].state_dict())
    ours(IDS[:, :-1], IDS[:, 1:]).backward()
    theirs(IDS, labels=IDS).loss.backward()
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = found[their_name(name)].grad.view_as(parameter)
        # The maps of an ensemble nearly cancel and their sum is normed, which enlarges roundings:
        # in fp32 either side is up to 4e-5 of the largest value away from its fp64 (torch 2.14.1).
        share = 1e-4 if ".mix." in name else 1e-5
        limit = max(share * parameter.grad.abs().max(), 1e-7)
        assert (gradient - parameter.grad).abs().max() <= limit, name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["default", "differential", "gpt ensemble"])
def test_gradient_checkpointing_changes_no_gradient(exported, kind, reentrant):
    plain, again = (load(exported(kind).folder).train() for _ in range(2))
    # its name before transformers 5.23, the last for Python 3.10 among them
    old = "gradient_checkpointing_enable"
    enable = getattr(again, "activation_checkpointing_enable", None) or getattr(again, old)
    enable({"use_reentrant": reentrant})
    again.enable_input_require_grads()
    for model in (plain, again):
        model(IDS, labels=IDS).loss.backward()
    for (name, one), two in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_generation_with_a_cache_is_ours(pair, cache):
    ours, theirs = pair
    expected = [
        [*prompt, *generate(ours, prompt, length=8, temperature=0)]
        for prompt in IDS[:, :5].tolist()
    ]
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    found = theirs.generate(
        IDS[:, :5], cache_implementation=cache, disable_compile=True, **settings
    )
    assert found.tolist() == expected


@torch.no_grad()
def test_left_padding_changes_no_continuation(pair):
    _, model = pair
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    prompts = [IDS[0, :9], IDS[1, :4]]
    alone = [model.generate(prompt[None], **settings)[0, len(prompt) :] for prompt in prompts]
    padded = torch.full((2, 9), 2)
    mask = torch.zeros(2, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, 9 - len(prompt) :], mask[row, 9 - len(prompt) :] = prompt, 1
    together = model.generate(padded, attention_mask=mask, **settings)[:, 9:]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("kind", ["default", "ensemble", "gpt"])
@torch.no_grad()
def test_a_padded_row_counts_from_its_first_token(exported, kind):
    """Called with a mask alone, padded left or right, at once and on from a cache."""
    model, row = load(exported(kind).folder), IDS[:1]
    alone, zeros, ones = (
        model(row).logits,
        torch.zeros(1, 9, dtype=torch.long),
        torch.ones_like(row),
    )
    for order in (lambda pad, real: (pad, real), lambda pad, real: (real, pad)):
        rows, mask = torch.cat(order(zeros, row), 1), torch.cat(order(zeros, ones), 1)
        logits = model(rows, attention_mask=mask).logits[mask.bool()]
        torch.testing.assert_close(logits[None], alone, rtol=0, atol=1e-5)
    rows, mask = torch.cat((zeros, row), 1), torch.cat((zeros, ones), 1)
    begun = model(rows[:, :20], attention_mask=mask[:, :20], use_cache=True)
    rest = model(rows[:, 20:], attention_mask=mask, past_key_values=begun.past_key_values)
    torch.testing.assert_close(rest.logits, alone[:, 11:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["default", "differential", "ensemble", "gpt ensemble"])
def test_in_bf16_matrices_round_and_scales_do_not(exported, kind):
    found = exported(kind)
    model = load(found.folder, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        matrix = "_proj" in name or "embed" in name or "lm_head" in name
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32), name
    logits, exact = model(IDS).logits, found.model(IDS)
    assert logits.dtype == torch.float32
    # a handful of bf16 roundings (2^-8 of a value each) per layer
    assert 0 < (logits - exact).abs().max() <= 0.05 * exact.abs().max()


def test_auto_classes(exported):
    folder = exported("default").folder
    assert type(AutoConfig.from_pretrained(folder)) is NGPTConfig
    assert type(AutoModel.from_pretrained(folder)) is NGPTModel
    assert type(load(folder)) is NGPTForCausalLM


@pytest.mark.parametrize("kind", ["default", "gpt differential", "ensemble"])
def test_pipeline(exported, kind):
    folder = exported(kind).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    make = pipeline("text-generation", model=load(folder), tokenizer=tokenizer)
    made = make(["the cat", "a dog lay"], batch_size=2, max_new_tokens=4, do_sample=False)
    assert [text[0]["generated_text"][:7] for text in made] == ["the cat", "a dog l"]


def test_the_snippet_of_the_documentation_runs(exported, tmp_path, monkeypatch, capsys):
    page = Path(__file__).resolve().parents[2] / "docs" / "huggingface.md"
    snippet = page.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "first").symlink_to(exported("default").folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, str(page), "exec"), {})
    assert "'generated_text': 'Once upon a time" in capsys.readouterr().out


REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    print(model(torch.arange(9)[None]).logits.double().sum().item())
assert not any(name.startswith("megatron_ngpt") for name in sys.modules)
"""


def test_an_export_runs_without_this_package(exported, tmp_path):
    """With the code that the folder carries."""
    found = [exported(kind) for kind in ("as ported", "differential", "gpt ensemble")]
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, *(str(one.folder) for one in found)],
        cwd=tmp_path, env={"HF_HOME": str(tmp_path), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = [one.model(torch.arange(9)[None]).double().sum().item() for one in found]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, abs=1e-3)


def test_initial_weights():
    model = NGPTForCausalLM(NGPTConfig.from_dict(_small(mlp_gated=True, hidden_act="silu")))
    layer = model.model.layers[0]
    assert set(layer.attn_alpha.tolist()) == {0.25}
    assert set(layer.self_attn.sqk.weight.flatten().tolist()) == {0.125}
    assert set(layer.mlp.suv_gate.weight.flatten().tolist()) == {1.0}
    assert set(model.sz.weight.flatten().tolist()) == {0.125}
    assert layer.mlp.gate_proj.weight.std().item() == pytest.approx(0.125, rel=0.1)


def _small(**more):
    return {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 33,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "initializer_range": 0.125, "attn_alpha_init_scaling": 0.25, **more,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["default", "ensemble", "spheres", "gpt"])
def test_normalising_puts_every_matrix_on_the_sphere_of_the_parameter_table(exported, kind):
    model, table = load(exported(kind).folder), parameter_table(KINDS[kind])
    for parameter in model.parameters():
        parameter.data *= 3
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.normalize_matrices()
    for name, parameter in model.named_parameters():
        spec = table[our_name(name)]
        if spec.norm_dim is None:
            assert torch.equal(parameter, before[name]), name
            continue
        parts = parameter.double().unflatten(spec.norm_dim, (spec.groups, -1))
        lengths = parts.norm(dim=spec.norm_dim + 1)
        assert ((lengths - 1).abs() <= spec.slack + 2e-7).all(), name


@torch.no_grad()
def test_the_port_s_own_weights_and_configuration(shared):
    """config.json as the port wrote it, legacy rotary fields included."""
    path = shared / "golden" / "hf_ngpt.safetensors"
    trace, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    model = NGPTForCausalLM(NGPTConfig(**facts)).eval()
    weights = {n.removeprefix("weights."): t for n, t in trace.items() if n.startswith("weights.")}
    model.load_state_dict(weights)
    torch.testing.assert_close(model(trace["input_ids"]).logits, trace["logits"], rtol=0, atol=1e-5)
    made = model.generate(
        trace["greedy"][:, :6], max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert torch.equal(made, trace["greedy"])


def test_the_defaults_are_the_port_s_8b_model():
    config = NGPTConfig()
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (
        4096,
        21504,
        131072,
    )
    assert config.rope_parameters["rope_theta"] == 1e6
    assert NGPTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_the_carried_code_is_this_package_s(exported):
    package, folder = Path(modeling_ngpt.__file__).parent, exported("default").folder
    assert {path.name for path in folder.glob("*.py")} == set(CODE)
    for name in CODE:
        assert (folder / name).read_text() == (package / name).read_text()


@pytest.mark.parametrize("kind", ["default", "ensemble", "gpt", "arc"])
def test_more_token_ids_keep_the_old_ones_logits(exported, kind):
    found = exported(kind)
    model = load(found.folder)
    model.resize_token_embeddings(340)
    logits = model(IDS).logits
    assert logits.shape[-1] == 340
    torch.testing.assert_close(logits[..., :330], found.model(IDS), rtol=0, atol=1e-5)
