"""tools/export_hf.py and tools/import_hf.py as a user runs them, between two topologies."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import megatron_ngpt.hf  # noqa: F401  registers nGPT with the Auto classes
from megatron_ngpt.config import ModelConfig, load_config, parse_config
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.checkpoint.weights import load_weights
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.run.checkpoints import Progress, find_checkpoint
from tests.distributed import CPU, run
from tests.engine.checkpoint.saving import advance
from tests.jobs import words
from tests.tools.commands import tool

HEADS = {"heads": 2, "head_dim": 10, "ffn_width": 36}  # what tp 2 divides


def _engine(mesh, folder: Path, **sections):
    config = parse_config(words("no corpus is read", folder, **sections))
    mesh = Mesh.build(Degrees.of(config.parallel, mesh.degrees.dp), CPU)
    engine = Engine(config, mesh)
    return engine, Checkpointer(config, engine)


OTHERS = {
    "pp": {
        "model": {**HEADS, "architecture": "gpt", "attention": "differential"},
        "parallel": {"pp": 2},
    },
    "zero3": {
        "model": {**HEADS, "attention": "ensemble", "tied_embedding": True},
        "optim": {"zero_stage": 3},
    },
    "tp": {
        "model": {
            **HEADS,
            "attention": "ensemble",
            "parametrisation": "nugpt",
            "reference_width": 7,
        },
        "parallel": {"tp": 2},
    },
}
"""Kinds that NVIDIA's port has not, each on another topology."""


def _train(mesh, folder: Path, sections: dict) -> None:
    engine, checkpointer = _engine(mesh, folder, checkpoint={"asynchronous": False}, **sections)
    advance(engine, [1, 2])
    checkpointer.save(Progress(2, 384))
    checkpointer.close()


def _train_on(mesh, folder: Path) -> tuple[Progress, dict, float]:
    """Resume an import with ZeRO 3: what was found, its weights, and the loss of one more step."""
    engine, checkpointer = _engine(mesh, folder, model=HEADS, optim={"zero_stage": 3})
    progress = checkpointer.resume()
    weights = {name: engine.masters.full_weight(name) for name in engine.table}
    advance(engine, [3])
    rows = torch.arange(17).repeat(1, 2, 1)
    return progress, weights, engine.evaluate(rows[..., :-1], rows[..., 1:])


@pytest.fixture(scope="module")
def there_and_back(tmp_path_factory) -> Path:
    """A folder with a run, its export and the import of that."""
    folder = tmp_path_factory.mktemp("tools")
    _go(folder, {"model": HEADS, "parallel": {"tp": 2}})
    return folder


def _go(folder: Path, sections: dict) -> None:
    run(2, _train, folder / "run", sections)
    arguments = ["--checkpoint", str(folder / "run"), "--output", str(folder / "hf")]
    assert tool("export_hf").main(arguments) == 0
    arguments = ["--source", str(folder / "hf"), "--output", str(folder / "back")]
    assert tool("import_hf").main(arguments) == 0


def _model(folder: Path) -> ModelConfig:
    return load_config(find_checkpoint(folder) / "config.yaml").model


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    table = parameter_table(_model(folder))
    return load_weights(find_checkpoint(folder), {name: spec.shape for name, spec in table.items()})


def test_a_round_trip_changes_no_bit(there_and_back):
    _check(there_and_back)


@pytest.mark.parametrize("topology", OTHERS)
def test_a_round_trip_of_another_kind_changes_no_bit(tmp_path, topology):
    _go(tmp_path, OTHERS[topology])
    _check(tmp_path)


@torch.no_grad()
def _check(folder: Path) -> None:
    """The same model and bits in the run and the import; the logits of the export are ours."""
    before, after = _weights(folder / "run"), _weights(folder / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    config, other = (_model(folder / name) for name in ("run", "back"))
    assert config == other
    model, ids = NGPT(config), torch.arange(17)[None]
    model.load_state_dict(before, strict=not config.tied_embedding)
    exported = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    torch.testing.assert_close(exported(ids).logits, model(ids), rtol=0, atol=1e-5)


def test_an_import_trains_on_with_another_topology(there_and_back):
    expected = _weights(there_and_back / "run")
    for progress, weights, loss in run(2, _train_on, there_and_back / "back"):
        assert progress == Progress()
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        assert 0 < loss < 10


def test_the_card_tells_how_it_was_trained(there_and_back):
    card = (there_and_back / "hf" / "README.md").read_text()
    assert "| trained | 2 of 8 steps, 384 tokens |" in card
    assert "tp 2" in card


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("export_hf", ["--checkpoint", "absent", "--output", "x"], "no complete checkpoint"),
        ("export_hf", ["--checkpoint", "run", "--output", "hf"], "is not empty"),
        (
            "export_hf",
            ["--checkpoint", "run", "--output", "x", "--tokenizer", "no"],
            "no such file",
        ),
        ("import_hf", ["--source", "absent", "--output", "x"], "no such file"),
        ("import_hf", ["--source", "run", "--output", "x"], "no Hugging Face model"),
        ("import_hf", ["--source", "hf", "--output", "back"], "has checkpoints already"),
    ],
)
def test_mistakes_are_told(there_and_back, capsys, monkeypatch, name, arguments, message):
    monkeypatch.chdir(there_and_back)
    assert tool(name).main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{name}.py: ")
    assert message in said
    assert not (there_and_back / "x").exists()
