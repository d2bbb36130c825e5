"""What the engine does besides training: weights in and out, evaluation, fp32 accumulation."""

import pytest
import torch

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.parallel.apply import table_parameters
from tests.distributed import run
from tests.engine.conftest import STAGES
from tests.engine.training import ODD, config_of, some_tokens, train, train_plainly

WORLDS = [1, 2]
TOKENS = some_tokens(steps=2, global_batch=4)


def configs(partitioned, **settings):
    """One configuration per stage, as in conftest."""
    return {
        stage: config_of(
            int(str(stage)[0]), overrides=partitioned if stage == 3 else "", **settings
        )
        for stage in STAGES
    }


def random_weights():
    """Whole parameters that are nowhere near the sphere."""
    generator = torch.Generator().manual_seed(8)
    named = NGPT(ODD).named_parameters()
    return {name: torch.randn(p.shape, generator=generator) for name, p in named}


def _take_over(mesh, configs):
    """Per stage: weights that did not come back, and the loss of a model that has them."""
    weights, found = random_weights(), {}
    for stage, config in configs.items():
        engine = Engine(config, mesh)
        engine.masters.set_weights(weights)
        lost = [n for n, w in weights.items() if not torch.equal(engine.masters.full_weight(n), w)]
        rows = TOKENS[0].chunk(mesh.degrees.dp)[mesh.index("dp")][None]
        found[stage] = lost, engine.evaluate(rows[..., :-1], rows[..., 1:])
        engine.deepspeed.destroy()
    return found


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_come_back_as_they_went_in_and_are_used(partitioned, world_size, dtype):
    plain = NGPT(ODD)
    plain.load_state_dict(random_weights())
    exact = plain(TOKENS[0, :, :-1], TOKENS[0, :, 1:]).item()
    settings = configs(partitioned, dtype=dtype, batch=(4, 4 // world_size))
    for answer in run(world_size, _take_over, settings):
        for lost, loss in answer.values():
            assert lost == []
            assert loss == pytest.approx(exact, abs=2e-6 if dtype == "fp32" else 0.05)


def _train_and_look(mesh, configs):
    """Losses of two steps with an evaluation before, between and after; and the evaluations."""
    found = {}
    for stage, config in configs.items():
        engine = Engine(config, mesh)
        rows = [step.chunk(mesh.degrees.dp)[mesh.index("dp")][None] for step in TOKENS]
        seen = [engine.evaluate(rows[0][..., :-1], rows[0][..., 1:])]
        told = []
        for row in rows:
            told.append(engine.train_step(row[..., :-1], row[..., 1:], config.optim.lr).loss)
            seen.append(engine.evaluate(rows[0][..., :-1], rows[0][..., 1:]))
        found[stage] = told, seen
        engine.deepspeed.destroy()
    return found


@pytest.mark.parametrize("world_size", WORLDS)
def test_evaluation_does_not_disturb_training(partitioned, world_size):
    settings = configs(partitioned, batch=(4, 4 // world_size))
    expected = train_plainly(settings[1], TOKENS)
    for answer in run(world_size, _train_and_look, settings):
        for told, seen in answer.values():
            assert told == pytest.approx(expected.losses, abs=1e-6)
            assert seen[0] == pytest.approx(told[0], abs=1e-6)
            assert seen[0] > seen[1] > seen[2]


MICRO_BATCHES = 64


def _same_again(mesh, configs):
    """Gradient norm of a batch, and of the same batch many times over, per stage."""
    one, many = configs
    same = TOKENS[:1, :1]
    return {
        stage: (
            train(mesh, one[stage], same.expand(1, mesh.degrees.dp, -1)).norms[0],
            train(mesh, many[stage], same.expand(1, MICRO_BATCHES, -1)).norms[0],
        )
        for stage in one
    }


@pytest.mark.parametrize("world_size", WORLDS)
def test_gradients_add_up_in_fp32_in_bf16_runs(partitioned, world_size):
    """64 times a 64th of the same is the same; sums in bf16 would lose 2^-9 with every term."""
    one = configs(partitioned, dtype="bf16", batch=(world_size, 1))
    many = configs(partitioned, dtype="bf16", batch=(MICRO_BATCHES, 1))
    for answer in run(world_size, _same_again, (one, many)):
        for once, often in answer.values():
            assert often == pytest.approx(once, rel=1e-5)


def test_a_sum_in_bf16_would_be_seen():
    """The test above can fail: the same sum in bf16 is far off."""
    value = torch.tensor(0.1, dtype=torch.bfloat16)
    total = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(MICRO_BATCHES):
        total += value / MICRO_BATCHES
    assert total.item() != pytest.approx(value.item(), rel=1e-3)


def _names(mesh, config):
    engine = Engine(config, mesh)
    fragments = [f.spec.name for f in engine.masters.fragments]
    return fragments, [name for name, _ in table_parameters(engine.deepspeed.module)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_rank_lists_every_parameter_in_the_same_order(stage):
    """The all-reduce of the projection relies on it, also where a rank holds nothing."""
    answers = run(2, _names, config_of(stage, batch=(4, 2)))
    fragments, parameters = answers[0]
    assert answers[1] == answers[0]
    assert sorted(fragments) == sorted(parameters)
