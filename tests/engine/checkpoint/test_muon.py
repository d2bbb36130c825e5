"""Muon keeps one average of a block's matrix; a run goes on from it as if never interrupted."""

from pathlib import Path

import pytest
import yaml

from tests.distributed import run
from tests.engine.checkpoint.saving import advance, at, build, same
from tests.jobs import stored_state, whole_state


def _interrupted(mesh, folder: Path):
    found = {}
    for name in ("muon", "muonh"):
        architecture = "ngpt" if name == "muon" else "gpt"
        sections = {
            "optim": {"optimizer": name, "adam_lr": 0.002},
            "model": {"architecture": architecture},
        }
        engine, checkpointer = build(mesh, folder / name, **sections)
        advance(engine, [1, 2])
        checkpointer.save(at(2))
        checkpointer.close()
        stored = stored_state(checkpointer.folder / "step_00000002")
        whole = same(whole_state(engine), stored)
        advance(engine, [3, 4])
        again, checkpointer = build(mesh, folder / name, **sections)
        checkpointer.resume()
        advance(again, [3, 4])
        found[name] = (whole, same(whole_state(engine), whole_state(again)), set(stored))
    engine, checkpointer = build(mesh, folder / "muonh", model={"architecture": "gpt"})
    with pytest.raises(ValueError, match=r"optim.optimizer = adamw, but .* trained with muonh"):
        checkpointer.resume()
    return found


def test_a_run_with_muon_goes_on_bit_by_bit(tmp_path):
    for name, (whole, equal, kinds) in run(1, _interrupted, tmp_path)[0].items():
        assert whole, name
        assert equal, name
        assert "exp_avg/blocks.0.mlp.up.weight" in kinds
        assert "exp_avg_sq/blocks.0.mlp.up.weight" not in kinds
        assert "exp_avg_sq/head.weight" in kinds
        saved = tmp_path / name / "checkpoints/step_00000002/config.yaml"
        assert yaml.safe_load(saved.read_text())["optim"]["optimizer"] == name
