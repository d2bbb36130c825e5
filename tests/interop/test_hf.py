"""Names and configurations, ours and those of the Hugging Face port, there and back."""

from dataclasses import replace

import pytest
import torch

from megatron_ngpt.config import ScaleConfig, parse_config
from megatron_ngpt.config.model import NUGPT_SCALE
from megatron_ngpt.interop import hf, hf_config
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.rope import Scaling, rotary_table
from tests.hf.conftest import KINDS
from tests.jobs import REPOSITORY

SEEDS = sorted((REPOSITORY / "examples" / "configs" / "seeds").glob("*.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_one_name_of_theirs(kind):
    table = parameter_table(KINDS[kind])
    theirs = {name: hf.their_name(name) for name in table}
    assert len(set(theirs.values())) == len(table)
    assert all(hf.our_name(name) == ours for ours, name in theirs.items())


@pytest.mark.parametrize("name", ["x", "model.layers.0.x", "model.layers.x.attn_alpha", "layers"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is no parameter"):
        hf.our_name(name)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_come_back_as_they_were(kind):
    for name, spec in parameter_table(KINDS[kind]).items():
        tensor = torch.rand(spec.shape)
        theirs = hf.to_theirs(name, tensor)
        vectors = ("alpha", "mix", "norm")
        assert theirs.dim() == (1 if any(part in name for part in vectors) else 2)
        assert torch.equal(hf.to_ours(theirs), tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_configurations_come_back_as_they_were(kind):
    assert hf_config.model_config(hf_config.published_config(KINDS[kind])) == KINDS[kind]


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)
def test_presets_of_the_published_lines_come_back_as_they_were(path):
    model = parse_config(["--config", str(path)]).model
    assert hf_config.model_config(hf_config.published_config(model)) == model


def test_scaled_rotary_embedding():
    linear = replace(KINDS["default"], rope_scaling="linear", rope_factor=2.0)
    assert hf_config.model_config(hf_config.published_config(linear)) == linear
    ntk = replace(KINDS["default"], rope_scaling="ntk", rope_factor=2.0)
    found = hf_config.model_config(hf_config.published_config(ntk))
    positions = torch.arange(50)
    expected = rotary_table(positions, 6, ntk.rope_theta, Scaling("ntk", 2.0))
    torch.testing.assert_close(rotary_table(positions, 6, found.rope_theta), expected)


def test_a_configuration_of_the_port_itself():
    """Without what this project adds, its rotary fields beside the others."""
    published = hf_config.published_config(KINDS["as ported"])
    for name in list(published):
        if name.endswith("_init_scaling") and name != "suv_init_scaling":
            del published[name]
    del published["mlp_gated"], published["rope_interleaved"], published["mlp_norm_eps"]
    rope = published.pop("rope_parameters")
    published |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": 0.5}
    found, scale = hf_config.model_config(published), KINDS["as ported"].init_std
    assert (found.mlp, found.mlp_eps, found.rope_style) == ("relu2", 1e-6, "half")
    assert (found.rope_theta, found.rotary_fraction) == (1e6, 0.5)
    assert found.s_qk == ScaleConfig(init=1.0, scale=scale)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_act": "silu", "mlp_gated": False}, "mlp_gated"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"attention_kind": "linear"}, "attention_kind = linear"),
        ({"attention_kind": "ensemble"}, r"model.maps = 1 with model.attention = ensemble"),
        ({"training": {"lr": 1.0}}, r"training = \['lr'\]"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope_type = llama3"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}},
            "attention_factor",
        ),
    ],
)
def test_a_configuration_of_what_we_lack_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        hf_config.model_config(hf_config.published_config(KINDS["as ported"]) | change)


def test_scales_that_do_not_follow_from_their_parametrisation_are_refused():
    published = hf_config.published_config(KINDS["nugpt"])
    assert published["sz_init_scaling"] == NUGPT_SCALE
    with pytest.raises(ValueError, match=r"sz_init_value = 9.0, but its training means"):
        hf_config.model_config(published | {"sz_init_value": 9.0})


def test_what_the_hugging_face_model_lacks_is_refused(monkeypatch):
    # an option that comes to the project later is refused until the export knows it
    monkeypatch.setattr(
        hf_config, "_OTHERS", tuple(n for n in hf_config._OTHERS if n != "rope_theta")
    )
    with pytest.raises(
        ValueError, match=r"model\.rope_theta = 0\.5: the Hugging Face model has no"
    ):
        hf_config.published_config(replace(KINDS["default"], rope_theta=0.5))
