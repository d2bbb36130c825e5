"""Every preset of examples/configs/seeds trains, made small enough for one CPU core."""

import pytest
import torch

from megatron_ngpt.config import load_config
from megatron_ngpt.engine.engine import Engine
from tests.distributed import run
from tests.jobs import REPOSITORY

PRESETS = sorted((REPOSITORY / "examples/configs/seeds").glob("*_1kctx_*.yaml"))
TWIN = REPOSITORY / "examples/configs/cpu_twin.yaml"
WORDS = ["--config", str(TWIN), "--model.vocab_size=64"]
STEPS = 12


def _losses(mesh, paths):
    """The losses of each preset's twin on sequences that count upwards."""
    first = torch.randint(64, (STEPS, 2, 8, 1), generator=torch.Generator().manual_seed(3))
    rows, found = (first + torch.arange(33)) % 64, {}
    for path in paths:
        config = load_config(path, *WORDS)
        engine = Engine(config, mesh)
        steps = [engine.train_step(row[..., :-1], row[..., 1:], config.optim.lr) for row in rows]
        found[path.stem] = [step.loss for step in steps]
        engine.deepspeed.destroy()
    return found


@pytest.fixture(scope="module")
def losses():
    """Of all of them, in one process."""
    return run(1, _losses, PRESETS)[0]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_twin_learns_to_count(losses, path):
    """From a uniform guess, log 64 = 4.16, by more than one nat in 12 steps."""
    first, *_, last = losses[path.stem]
    assert first == pytest.approx(4.16, abs=0.4)
    assert last < first - 1


def test_there_is_a_preset_of_every_name():
    kinds = ("GPT", "nGPT", "DiffNGPT", "DiffTransformer", "LETNGPT", "LETTransformer")
    names = {f"{kind}_{size}kctx_10k_lr30e-4" for kind in kinds for size in (1, 4)}
    found = {path.stem for path in PRESETS[0].parent.glob("*.yaml")}
    assert found == {*names, "LETNGPT_1kctx_10k_lr30e-4_maps5"}
