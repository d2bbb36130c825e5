"""What can be imported, and how the rest is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ngpt.interop import nvidia
from megatron_ngpt.interop.sources import open_source
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from tests.hf.conftest import KINDS, exported, sentencepiece
from tests.tools.test_verify_golden import NAMES, PUBLISHED

__all__ = ["exported", "sentencepiece"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_comes_back_bit_for_bit(exported, kind):
    made = exported(kind)
    source = open_source(made.folder)
    assert (source.model, source.warning) == (KINDS[kind], "")
    assert all(torch.equal(source.load(name), value) for name, value in made.weights.items())


@pytest.fixture
def folder(exported, tmp_path):
    """An export to break."""
    return shutil.copytree(exported("default").folder, tmp_path / "broken")


def changed_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop_a_file(folder):
    next(folder.glob("*-00002-*.safetensors")).unlink()


def _cut_a_file(folder):
    path = next(folder.glob("*-00002-*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


BROKEN = {
    "has nothing for": _drop_a_file,
    "cannot be read": _cut_a_file,
    r"has \(330, 24\) for embed.weight, its configuration means \(331, 24\)": lambda folder: (
        changed_config(folder, vocab_size=331)
    ),
    "has nothing for blocks.3.": lambda folder: changed_config(folder, num_hidden_layers=4),
    "its configuration means nothing": lambda folder: changed_config(folder, num_hidden_layers=2),
    "model_type = llama, not ngpt": lambda folder: changed_config(folder, model_type="llama"),
    "no Hugging Face model": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_folder_is_refused(folder, message):
    BROKEN[message](folder)
    with pytest.raises(ValueError, match=message):
        open_source(folder)


def their_checkpoint(path, prefix="", **more):
    """A ckpt.pt as NVIDIA/ngpt's train.py saves it; returns the weights under our names."""
    model = NGPT(nvidia.model_config(PUBLISHED))
    generator = torch.Generator().manual_seed(1)
    ours = {
        name: torch.rand(p.shape, generator=generator).bfloat16().float()
        for name, p in model.named_parameters()
    }
    theirs = {prefix + name: nvidia.stack(name, ours).bfloat16() for name in NAMES}
    content = {
        "model": theirs, "optimizer": {}, "model_args": PUBLISHED, "iter_num": 7,
        "config": {"lr": 1.0}, "rng_state_numpy": np.random.get_state(),
        "rng_state_pytorch_bytes": b"abc", **more,
    }  # fmt: skip
    torch.save(content, path)
    return ours


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_of_nvidia(tmp_path, prefix):
    ours = their_checkpoint(tmp_path / "ckpt.pt", prefix)
    source = open_source(tmp_path / "ckpt.pt")
    assert source.model == nvidia.model_config(PUBLISHED)
    assert "no rotation" in source.warning
    assert ours.keys() == parameter_table(source.model).keys()
    for name, value in ours.items():
        found = source.load(name)
        assert found.dtype == torch.float32
        assert torch.equal(found, value), name


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("PWNED",))


def test_a_pickle_runs_nothing(tmp_path, capsys):
    their_checkpoint(tmp_path / "ckpt.pt", more=Evil())
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(tmp_path / "ckpt.pt")
    assert "PWNED" not in capsys.readouterr().out


def test_other_files_are_refused(tmp_path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, message in {
        "other.pt": "no model and model_args", "text.pt": "cannot be read",
        "empty.pt": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_source(tmp_path / "absent")


def test_the_port_s_own_folder(shared, tmp_path):
    """Weights and configuration as another project wrote them."""
    path = shared / "golden" / "hf_ngpt.safetensors"
    trace = load_file(path)
    weights = {n.removeprefix("weights."): t for n, t in trace.items() if n.startswith("weights.")}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(path.with_suffix(".json").read_bytes())
    source = open_source(tmp_path)
    model = NGPT(source.model)
    model.load_state_dict({name: source.load(name) for name in parameter_table(source.model)})
    with torch.no_grad():
        logits = model(trace["input_ids"])
    torch.testing.assert_close(logits, trace["logits"], rtol=0, atol=1e-5)
