"""Every tool that opens a run, against every option of the model.

A field of ModelConfig that no model of ``MODELS`` puts to use fails here, and so does a tool that
opens runs and is not tried.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from megatron_ngpt.config import Config, DataConfig, EngineConfig, ModelConfig, ScaleConfig
from megatron_ngpt.config import load_config as config_of
from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer
from megatron_ngpt.engine.checkpoint.weights import load_model
from megatron_ngpt.interop.imported import write_checkpoint
from megatron_ngpt.interop.sources import Source
from megatron_ngpt.mesh.launch import Launch
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.train.generate import generate
from tests.distributed import run
from tests.hf.conftest import sentencepiece
from tests.jobs import REPOSITORY
from tests.tools.commands import tool

__all__ = ["sentencepiece"]

logging.disable_progress_bar()

BASE = ModelConfig(width=24, layers=2, heads=4, ffn_width=40, vocab_size=330)
MODELS: dict[str, dict] = {
    "shape": {
        "width": 20, "layers": 3, "heads": 2, "ffn_width": 52, "vocab_size": 341,
        "rope_theta": 50.0,
    },
    "tied": {"tied_embedding": True},
    "grouped": {
        "kv_heads": 2, "head_dim": 10, "rope_style": "half", "rotary_fraction": 0.67,
        "qk_norm": False, "s_qk": ScaleConfig(paired=True),
    },
    "gpt": {
        "architecture": "gpt", "init_std": 0.3, "norm_eps": 0.02, "rope_scaling": "ntk",
        "rope_factor": 4.0,
    },
    "gpt, normed": {
        "architecture": "gpt", "init_std": 0.3, "gpt_qk_norm": True, "kv_heads": 2,
        "s_qk": ScaleConfig(scale=0.7, paired=True),
    },
    "differential": {"attention": "differential", "head_dim": 12, "head_norm_eps": 0.01},
    "ensemble": {
        "attention": "ensemble", "maps": 4, "head_dim": 16, "map_dim": 6, "value_residual": True,
    },
    "spheres": {"hyperspheres": 2, "sphere_slack": 0.1, "tied_embedding": True},
    "arc": {
        "residual": "slerp", "mlp": "relu2", "mlp_eps": 0.05, "rope_scaling": "linear",
        "rope_factor": 4.0, "rope_frequencies": (1.0, 0.4, 0.05),
    },
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 8},
    "nugpt": {
        "parametrisation": "nugpt", "reference_width": 10, "reference_layers": 7,
        "logit_preconditioning": True,
    },
    "scales": {
        "alpha_attention": ScaleConfig(init=(0.3, 0.1)),
        "alpha_mlp": ScaleConfig(init=0.3, shared=True),
        "s_qk": ScaleConfig(init=1.7, learned=False),
        "s_uv": ScaleConfig(init=1.7, scale=0.2),
        "s_z": ScaleConfig(init=5.0, learned=False),
    },
}  # fmt: skip
"""Settings unlike BASE; together they put every field of ModelConfig to use."""

OPENED = {"generate", "evaluate", "export_hf", "inspect_checkpoint", "spectra"}
"""Tools that open a run, each tried below."""

IDS = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(3))


@dataclasses.dataclass
class Case:
    """A run of a model, and what that model computes when nobody saves or loads it."""

    model: NGPT
    folder: Path
    tokenizer: SentencePieceTokenizer
    data: str

    @property
    def checkpoint(self) -> list[str]:
        return ["--checkpoint", str(self.folder / "checkpoints")]


def test_no_option_and_no_tool_is_left_out():
    models = [_model_config(settings) for settings in MODELS.values()]
    for field in dataclasses.fields(ModelConfig):
        usual = getattr(BASE, field.name)
        assert any(getattr(model, field.name) != usual for model in models), (
            f"model.{field.name}: put it to use in MODELS, so that every tool meets it"
        )
    tools = {path.stem: path.read_text() for path in (REPOSITORY / "tools").glob("*.py")}
    assert {name for name, text in tools.items() if "find_checkpoint(" in text} == OPENED


def _model_config(settings: dict) -> ModelConfig:
    """Derived anew from BASE's sizes."""
    sizes = ("width", "layers", "heads", "ffn_width", "vocab_size")
    return ModelConfig(**({name: getattr(BASE, name) for name in sizes} | settings))


@pytest.fixture(scope="module")
def cases(tmp_path_factory, sentencepiece) -> dict[str, Case]:
    """A run of every model, weights as if trained: no two values of a vector alike."""
    folder = tmp_path_factory.mktemp("options")
    tokenizer, found = SentencePieceTokenizer(str(sentencepiece)), {}
    with IndexedWriter(folder / "text", "uint16") as writer:
        for row in IDS.numpy():
            writer.add_document(row.astype(np.uint16))
    for name, settings in MODELS.items():
        model, run_dir = _model(_model_config(settings)), folder / name
        weights = {n: p.detach() for n, p in model.named_parameters()}
        config = Config(
            model=model.config,
            data=DataConfig(tokenizer=str(sentencepiece), seq_len=64),
            engine=EngineConfig(device="cpu"),
        )
        source = Source("a test", model.config, weights.__getitem__)
        write_checkpoint(source, config, run_dir / "checkpoints")
        found[name] = Case(model, run_dir, tokenizer, str(folder / "text"))
    return found


def _model(shape: ModelConfig) -> NGPT:
    model = NGPT(shape)
    initialise(model, parameter_table(shape), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in (p for p in model.parameters() if p.dim() == 1):
        parameter.data *= torch.rand(parameter.shape, generator=generator) + 0.5
    return model.eval()


@pytest.fixture(params=MODELS)
def case(request, cases) -> Case:
    return cases[request.param]


def test_generate(case, monkeypatch, capsys):
    asked = ["--prompt", "the cat sat", "--length", "6", "--temperature", "0", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["generate.py", *case.checkpoint, *asked])
    assert tool("generate").main() == 0
    ids = case.tokenizer.encode("the cat sat")
    made = generate(case.model, ids, length=6, temperature=0, stop=case.tokenizer.eos_id)
    assert capsys.readouterr().out.startswith(case.tokenizer.decode([*ids, *made]) + "\n---")


@torch.no_grad()
def test_export_and_import(case, capsys):
    """The same logits and greedy tokens in transformers; the same bits when imported again."""
    there, back = str(case.folder / "hf"), str(case.folder / "back")
    assert tool("export_hf").main([*case.checkpoint, "--output", there]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(there).eval()
    torch.testing.assert_close(theirs(IDS).logits, case.model(IDS), rtol=0, atol=1e-5)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    made = generate(case.model, IDS[0].tolist(), length=6, temperature=0)
    assert theirs.generate(IDS[:1], **settings)[0, 17:].tolist() == list(made)
    assert tool("import_hf").main(["--source", there, "--output", back]) == 0
    opened = load_model(
        case.folder / "back/checkpoints/step_00000000",
        config_of(case.folder / "back/config.yaml").model,
        torch.device("cpu"),
    )
    ours = dict(case.model.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in opened.named_parameters())
    torch.testing.assert_close(opened(IDS), case.model(IDS), rtol=0, atol=1e-5)


def test_inspect(case, capsys):
    assert tool("inspect_checkpoint").main([str(case.folder / "checkpoints"), "--verify"]) == 0
    count = sum(p.numel() for p in case.model.parameters())
    assert f"parameters  {count:,} in " in capsys.readouterr().out


def test_spectra(case, tmp_path, capsys):
    """Of the weights in use: with values as stored and as effective, as the model itself has."""
    output = tmp_path / "spectra.json"
    assert tool("spectra").main([*case.checkpoint, "--output", str(output)]) == 0
    found, model = json.loads(output.read_text()), case.model
    assert "layer 1" in capsys.readouterr().out
    up = model.blocks["1"].mlp.up.weight.detach().double()
    assert found["blocks.1.mlp.up.weight"] == pytest.approx(float(torch.linalg.cond(up)), rel=1e-6)
    s_qk = model.blocks["1"].attention.s_qk
    if s_qk is not None and s_qk.value is not None:
        size = float(s_qk().detach().abs().mean())
        assert found["blocks.1.attention.s_qk.value"] == pytest.approx(size, rel=1e-6)


def _evaluated(mesh, arguments: list[list[str]]) -> None:
    evaluate = tool("evaluate")
    evaluate.start = lambda *_: None  # there is a process group
    for words in arguments:
        evaluate.main(Launch(), words)


@torch.no_grad()
def test_evaluate(cases, tmp_path):
    """One process for all of them: the mean loss of two documents is the model's own."""
    arguments = [
        [*case.checkpoint, "--data", case.data, "--lengths", "16", "--output", f"{tmp_path}/{name}"]
        for name, case in cases.items()
    ]
    run(1, _evaluated, arguments)
    for name, case in cases.items():
        parts = json.loads((tmp_path / name).read_text())["loss"]["16"]
        expected = float(case.model(IDS[:, :-1], IDS[:, 1:]))
        assert sum(parts) / len(parts) == pytest.approx(expected, abs=1e-5), name
