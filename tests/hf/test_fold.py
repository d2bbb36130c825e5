"""An export with s_z folded into the head computes what it computed before."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_ngpt.interop.fold import INDEX, SCALE, fold_logit_scale
from tests.tools.commands import tool

hf = pytest.importorskip("megatron_ngpt.hf")
IDS = torch.arange(2, 26).reshape(2, 12)


def logits(folder):
    with torch.no_grad():
        return hf.NGPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("kind", ["default", "as ported"])
def test_logits_stay(exported, tmp_path, kind):
    made = exported(kind).folder
    folder = shutil.copytree(made, tmp_path / "folded")
    fold_logit_scale(folder)
    before, after = tensors(made), tensors(folder)
    assert before.keys() - after.keys() == {SCALE}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"lm_head.weight"}
    torch.testing.assert_close(logits(folder), logits(made), rtol=0, atol=1e-5)
    index = json.loads((folder / INDEX).read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in after.values())
    with pytest.raises(ValueError, match="folded already"):
        fold_logit_scale(folder)


def test_a_tied_head_becomes_a_tensor_of_its_own(exported, tmp_path):
    """As if the head were the embedding: an export without a head, and the same with one."""
    folders = [shutil.copytree(exported("default").folder, tmp_path / name) for name in "ab"]
    weights = tensors(folders[0])
    for folder, tied in zip(folders, (True, False), strict=True):
        for path in [*folder.glob("*.safetensors"), folder / INDEX]:
            path.unlink()
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        kept = {n: t for n, t in weights.items() if not (tied and n == "lm_head.weight")}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    fold_logit_scale(folders[0])
    assert torch.equal(tensors(folders[0])["model.embed_tokens.weight"], weights["lm_head.weight"])
    torch.testing.assert_close(logits(folders[0]), logits(folders[1]), rtol=0, atol=1e-5)


def test_the_tool_folds(exported, tmp_path):
    made = exported("default")
    words = ["--checkpoint", str(made.checkpoint), "--output", str(tmp_path / "out"), "--fold-sz"]
    assert tool("export_hf").main(words) == 0
    assert SCALE not in tensors(tmp_path / "out")
    torch.testing.assert_close(logits(tmp_path / "out"), logits(made.folder), rtol=0, atol=1e-5)
