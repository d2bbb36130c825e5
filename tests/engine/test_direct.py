"""One replica without DeepSpeed trains as with it."""

import pytest
import torch

from megatron_ngpt.engine.direct import Direct
from megatron_ngpt.engine.engine import Engine
from tests.distributed import run
from tests.engine.conftest import KINDS
from tests.engine.training import config_of, some_tokens, train, write_overrides

TOKENS = some_tokens(steps=3, global_batch=4)
CASES = [("ngpt", 1, 4), ("clipped", 1, 2), ("gpt", 0, 2), ("bf16", 1, 2), ("bf16", 2, 4)]


def _train_both(mesh, both):
    """Per case: the record without DeepSpeed and with it."""
    return [[train(mesh, config, TOKENS) for config in pair] for pair in both]


def test_the_same_numbers_as_through_deepspeed(tmp_path):
    """A file of overrides asks for DeepSpeed."""
    path = write_overrides(tmp_path)
    both = [
        [config_of(stage, batch=(4, micro), overrides=o, **KINDS[kind]) for o in ("", path)]
        for kind, stage, micro in CASES
    ]
    for case, (ours, theirs) in zip(CASES, run(1, _train_both, both)[0], strict=True):
        assert ours.losses == pytest.approx(theirs.losses, abs=1e-6), case
        assert ours.norms == pytest.approx(theirs.norms, rel=1e-6), case
        assert ours.dtypes == theirs.dtypes, case
        for name, weight in theirs.final.items():
            assert (ours.final[name] - weight).abs().max() <= 1e-6, (case, name)


def _kinds(mesh, configs):
    return [isinstance(Engine(config, mesh).deepspeed, Direct) for config in configs]


def test_when_deepspeed_is_left_out(tmp_path):
    alone = config_of(3, batch=(4, 2))
    asked = config_of(3, batch=(4, 2), overrides=write_overrides(tmp_path))
    assert run(1, _kinds, [alone, asked]) == [[True, False]]
    assert run(2, _kinds, [alone]) == [[False], [False]]


def test_a_copy_gives_up_its_gradient_with_every_backward():
    """bf16 gradients of two micro-batches are never added up in bf16."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.ones(2, 2))
    direct = Direct(
        module,
        {"weight": type("Spec", (), {"keeps_fp32": False})},
        lambda named: torch.optim.SGD([p for _, p in named], lr=1.0),
        accumulation=2,
        copy_dtype=torch.bfloat16,
    )
    master = direct.masters[module.weight]
    for _ in range(2):
        direct.backward((module.weight * torch.tensor([[1.0, 2**-9]], dtype=torch.bfloat16)).sum())
        assert module.weight.grad is None
        assert master.grad.dtype == torch.float32
        direct.step()
    assert master.grad is None
    assert master.tolist() == [[0.0, 1 - 2**-9]] * 2
    assert torch.equal(module.weight.data, master.data.bfloat16())
