"""Dry runs: every example configuration, and what they refuse."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.config import Config, ModelConfig, ParallelConfig, TrainConfig, load_config
from megatron_ngpt.estimate import dry_run as room
from megatron_ngpt.estimate.dry_run import dry_run, fake_mesh
from megatron_ngpt.estimate.options import dry_run_options
from megatron_ngpt.mesh.degrees import Degrees
from tests.jobs import REPOSITORY, forked

CONFIGS = REPOSITORY / "examples/configs"
SMALL = Config(
    model=ModelConfig(width=32, layers=4, heads=4, vocab_size=100),
    train=TrainConfig(global_batch=64, micro_batch=1),
)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_examples(path):
    """On as many ranks as they are made for."""
    made_for = {"ngpt_8b": 512, "debug_cpu_tp2_pp2": 8}
    made_for |= dict.fromkeys(("debug_cpu", "quickstart", "books_cpu", "cpu_twin"), 2)
    world_size = made_for.get(path.stem, 64)
    told = dry_run(load_config(path), world_size)
    assert f"{world_size} ranks" in told.splitlines()[0]
    assert not dist.is_initialized()


@pytest.mark.parametrize(("size", "millions"), [("0.5b", 468.2), ("1b", 1025.6), ("8b", 8053.1)])
def test_examples_have_the_size_they_are_named_for(size, millions):
    """Matrices alone: embedding, head, 4 D^2 of attention and 3 D F of the MLP a layer,
    2 D F without a gate."""
    for path in CONFIGS.glob(f"*_{size}*.yaml"):
        model = load_config(path).model
        kv = model.kv_heads / model.heads
        inner = (3 if model.is_gated else 2) * model.ffn_width
        block = ((2 + 2 * kv) * model.width + inner) * model.width
        total = model.layers * block + 2 * model.vocab_size * model.width
        assert total / 1e6 == pytest.approx(millions, abs=0.05), path


@pytest.mark.parametrize(
    "parallel",
    [
        {},
        {"tp": 4},
        {"pp": 4},
        {"pp": 2, "schedule": "zbv"},
        {"tp": 2, "pp": 2, "schedule": "interleaved"},
    ],
    ids=str,
)
def test_512_ranks(parallel):
    config = replace(
        SMALL,
        parallel=ParallelConfig(**parallel),
        train=replace(SMALL.train, global_batch=2048),
    )
    assert "512 ranks" in dry_run(config, 512)


def test_as_few_ranks_as_the_degrees_allow():
    config = replace(SMALL, parallel=ParallelConfig(tp=2, pp=2))
    assert "4 ranks = pp 2 x dp 1 x cp 1 x tp 2" in dry_run(config, 0)


def test_the_last_rank_holds_the_last_stage():
    with fake_mesh(Degrees(pp=2, dp=3, cp=1, tp=2), 11) as mesh:
        assert (mesh.index("pp"), mesh.index("dp"), mesh.index("tp")) == (1, 2, 1)
        assert mesh.rank == 11
        assert mesh.device == torch.device("meta")
    assert not dist.is_initialized()


def test_a_model_that_is_not_what_the_table_says_is_found(monkeypatch):
    real = room.parameter_table

    def other(model):
        table = real(model)
        name = "blocks.3.mlp.up.weight"
        return table | {name: replace(table[name], shape=(7, 32))}

    monkeypatch.setattr(room, "parameter_table", other)
    with pytest.raises(AssertionError, match=r"blocks\.3\.mlp\.up\.weight"):
        dry_run(SMALL, 2)
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("config", "world_size", "message"),
    [
        (SMALL, 3, "train.global_batch = 64 is not a multiple"),
        (replace(SMALL, parallel=ParallelConfig(tp=2)), 3, "3 processes cannot be split"),
        (replace(SMALL, parallel=ParallelConfig(tp=3)), 3, "does not divide model.heads = 4"),
        (replace(SMALL, parallel=ParallelConfig(pp=8)), 8, "parallel.layers_per_stage"),
        (replace(SMALL, parallel=ParallelConfig(pp=4)), 128, "cannot run 2 micro-batches"),
    ],
)
def test_refused(config, world_size, message):
    with pytest.raises(ValueError, match=message):
        dry_run(config, world_size)


@pytest.mark.parametrize(
    ("argv", "wanted", "rest"),
    [
        (["--config", "f"], None, ["--config", "f"]),
        (["--config", "f", "--dry_run"], 0, ["--config", "f"]),
        (["--dry_run", "--world_size", "8", "--train.steps", "3"], 8, ["--train.steps", "3"]),
        (["--world_size=16", "--dry_run"], 16, []),
        (["--world_size", "8"], None, ["--world_size", "8"]),
    ],
)
def test_options(argv, wanted, rest):
    assert dry_run_options(argv) == (wanted, rest)


@pytest.mark.parametrize("count", ["0", "-2", "many", "1.5", ""])
def test_a_world_of_no_size(count):
    with pytest.raises(ValueError, match=f"--world_size {count}: must be a positive number"):
        dry_run_options(["--dry_run", f"--world_size={count}"])


def test_the_command(tmp_path):
    """It prints the table, trains nothing and leaves nothing but the folders it tried."""
    arguments = ["--config", str(CONFIGS / "debug_cpu_tp2_pp2.yaml"), "--logging.dir", tmp_path]
    words = [*map(str, arguments), "--dry_run", "--world_size"]
    done = forked([*words, "8"])
    assert (done.code, done.err) == (0, ""), done
    assert "8 ranks = pp 2 x dp 2 x cp 1 x tp 2" in done.out
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints"]
    done = forked([*words, "6"])
    assert done.code == 2
    assert done.err.startswith("pretrain_ngpt.py: 6 processes cannot be split"), done
