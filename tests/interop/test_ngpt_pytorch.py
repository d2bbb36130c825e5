"""State dicts of the package nGPT-pytorch become checkpoints that compute the same."""

import pytest
import torch

from megatron_ngpt.config import load_config
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.checkpoint.weights import load_weights
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.interop.ngpt_pytorch import Published
from megatron_ngpt.interop.sources import open_source
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.run.checkpoints import find_checkpoint
from tests.distributed import CPU, run
from tests.tools.commands import tool

SHAPE = {"num_tokens": 40, "dim": 32, "depth": 3, "heads": 2, "dim_head": 16}
IDS = torch.arange(34).reshape(2, 17) * 7 % 40
OPTIONS = {
    "default": {},
    "manual": {"manual_norm_weights": True},
    "options": {
        "tied_embedding": True,
        "attn_norm_qk": False,
        "add_value_residual": False,
        "norm_eps": 0.05,
        "num_hyperspheres": 2,
    },
    "scales": {
        "ff_expand_factor": 3.0,
        "alpha_init": 0.3,
        "alpha_ff_init": (0.1, None, 0.4),
        "alpha_attn_scale": 0.5,
        "s_qk_init": (1.0, 1.5, 2.0),
        "s_qk_scale": 0.2,
        "s_ff_hidden_init": 1.2,
        "s_ff_gate_init": 1.2,
        "s_logit_init": 3.0,
    },
}


def theirs(**options):
    """A model of the package, its parametrised weights off the sphere as after a step of Adam."""
    package = pytest.importorskip("nGPT_pytorch.nGPT")
    for kind in vars(package).values():  # they have __eq__ without __hash__
        if isinstance(kind, type) and kind.__hash__ is None:
            kind.__hash__ = torch.nn.Module.__hash__
    torch.manual_seed(1)
    model = package.nGPT(**SHAPE, **options)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data *= 0.5 + torch.rand(parameter.shape)
    if options.get("manual_norm_weights"):
        model.norm_weights_()
    return model.eval()


def imported(source, folder, *kwargs):
    """The run that tools/import_hf.py makes, and a model with the weights of its checkpoint."""
    words = ["--source", str(source), "--output", str(folder)]
    assert tool("import_hf").main([*words, *(("--kwargs", *kwargs) if kwargs else ())]) == 0
    config = load_config(folder / "config.yaml")
    table = parameter_table(config.model)
    weights = load_weights(
        find_checkpoint(folder), {name: row.shape for name, row in table.items()}
    )
    model = NGPT(config.model)
    if config.model.tied_embedding:
        weights["head.weight"] = weights["embed.weight"]
    model.load_state_dict(weights)
    return model.eval()


def assert_same_logits(ours, model):
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), model(IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_the_package_s(tmp_path, name):
    model = theirs(**OPTIONS[name])
    kwargs = {**SHAPE, **OPTIONS[name]}
    torch.save({"model": model.state_dict(), "kwargs": kwargs}, tmp_path / "saved.pt")
    assert_same_logits(imported(tmp_path / "saved.pt", tmp_path / "run"), model)


def test_a_bare_state_dict_needs_only_what_it_does_not_tell(tmp_path, capsys):
    model = theirs(**OPTIONS["options"])
    named = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save(named, tmp_path / "bare.pt")
    words = ["add_value_residual=false", "attn_norm_qk=false", "norm_eps=0.05"]
    ours = imported(tmp_path / "bare.pt", tmp_path / "run", *words, "num_hyperspheres=2")
    assert_same_logits(ours, model)
    said = capsys.readouterr().err
    assert "defaults were taken: causal=True, alpha_init=None" in said
    assert "the first training step changes those weights" in said


def _one_step(mesh, folder):
    """Train the import on with ZeRO 2 on two ranks; the losses before and after a few steps."""
    config = load_config(
        folder / "config.yaml",
        "--train.global_batch=2",
        "--train.micro_batch=1",
        "--optim.zero_stage=2",
        "--data.seq_len=16",
    )
    engine = Engine(config, Mesh.build(Degrees.of(config.parallel, mesh.degrees.dp), CPU))
    Checkpointer(config, engine).resume()
    rows = IDS[mesh.index("dp")].reshape(1, 1, 17)
    losses = []
    for _ in range(2):
        losses.append(engine.mean(engine.backward(rows[..., :-1], rows[..., 1:])))
        engine.update(0.01)
    return losses


def test_an_import_trains_on(tmp_path):
    model = theirs()
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    imported(tmp_path / "bare.pt", tmp_path / "run")
    with torch.no_grad():
        expected = float(model(IDS, return_loss=True))
    for first, second in run(2, _one_step, tmp_path / "run"):
        assert first == pytest.approx(expected, abs=1e-5)
        assert second < first


@pytest.mark.parametrize(
    ("options", "kwargs", "message"),
    [
        ({}, ["heads=4"], "heads = 4, but the tensors have 2"),
        ({}, ["dropout=0.1"], "dropout: nGPT-pytorch's nGPT has no such argument"),
        ({}, ["causal=false"], "only causal models"),
        ({}, ["s_ff_gate_init=2.0"], "s_ff_hidden_init = 1.0 and s_ff_gate_init = 2.0"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(tmp_path, capsys, options, kwargs, message):
    torch.save(theirs(**options).state_dict(), tmp_path / "x.pt")
    words = ["--source", str(tmp_path / "x.pt"), "--output", str(tmp_path / "run"), "--kwargs"]
    assert tool("import_hf").main([*words, *kwargs]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [("layers.1.0.fn.qk_scale.scale", "1 negative values of 32"), (None, "has nothing for")],
)
def test_tensors_that_cannot_be_had_are_refused_by_name(tmp_path, capsys, name, message):
    tensors = theirs().state_dict()
    if name:
        tensors[name][3] *= -1
    else:
        del tensors["logit_scale.scale"]
    torch.save(tensors, tmp_path / "x.pt")
    words = ["--source", str(tmp_path / "x.pt"), "--output", str(tmp_path / "run")]
    assert tool("import_hf").main(words) == 2
    assert message in capsys.readouterr().err


def test_frequencies_are_noted_only_where_the_base_does_not_tell_them():
    tensors = theirs().state_dict()
    assert Published(tensors, {}).model.rope_frequencies == ()
    tensors["rotary_embed.freqs"] = turned = torch.linspace(0.1, 1, 8)
    assert Published(tensors, {}).model.rope_frequencies == pytest.approx(turned.tolist())


def test_arguments_are_for_this_source_alone(tmp_path):
    torch.save({"model": {}, "model_args": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="leave heads away"):
        open_source(tmp_path / "ckpt.pt", {"heads": 2})
