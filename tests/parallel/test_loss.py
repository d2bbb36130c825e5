"""The loss over a split vocabulary against cross-entropy of the whole logits."""

from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.ops.fused import REFERENCE, pick_operations
from megatron_ngpt.ops.loss import Logits, head_loss
from megatron_ngpt.parallel.loss import SplitColumns
from megatron_ngpt.parallel.shard import local_shard
from tests.distributed import CPU, run

B, T = 3, 5


class Case(NamedTuple):
    vocab_size: int
    size: float = 3.0
    dtype: torch.dtype = torch.float32
    reference: bool = False


CASES = [
    *(Case(vocab_size) for vocab_size in (2, 97, 128, 129, 300, 384, 512, 700)),
    Case(300, reference=True),
    Case(300, 1e4),
    Case(97, 1e4),
    Case(300, dtype=torch.bfloat16),
    Case(97, 1e4, torch.bfloat16),
]


def whole(case):
    """Logits and targets, among these the ids on both sides of every rank's border."""
    generator = torch.Generator().manual_seed(case.vocab_size)
    logits = case.size * torch.randn(B, T, case.vocab_size, generator=generator)
    targets = torch.randint(case.vocab_size, (B, T), generator=generator)
    borders = torch.tensor([0, 127, 128, 255, 256, case.vocab_size - 1])
    targets[0] = borders.clamp_max(case.vocab_size - 1)[:T]
    targets[1, 0] = case.vocab_size - 1
    return logits.to(case.dtype), targets


def _split(mesh, tp):
    """Per case: loss, gradient of this rank's columns, floats sent per token, rows held."""
    world = mesh.degrees.dp
    mesh = Mesh.build(Degrees(pp=1, dp=world // tp, cp=1, tp=tp), CPU)
    return {case: _one(mesh, case) for case in CASES}


def _one(mesh, case):
    logits, targets = whole(case)
    spec = ParameterSpec("head.weight", (case.vocab_size, 1), None, 0, "head")
    shard = local_shard(spec, mesh.degrees, mesh.index("tp"))
    first, rows = shard.origin[0], shard.real[0]
    # what the padding columns hold must not matter
    weight = torch.full((shard.shape[0], case.vocab_size), 50.0, dtype=case.dtype)
    weight[:rows] = torch.eye(case.vocab_size, dtype=case.dtype)[first : first + rows]
    h, weight = logits.requires_grad_(), weight.requires_grad_()
    ops = REFERENCE if case.reference else pick_operations("auto", CPU)
    head = Logits(weight, columns=SplitColumns(first, rows, mesh.group("tp")), rows=4, ops=ops)
    sent = []
    reduce = dist.all_reduce

    def counted(values, *args, **kwargs):
        sent.append(values.numel())
        return reduce(values, *args, **kwargs)

    others = [n for n in dir(dist) if n.startswith(("all_gather", "gather", "all_to_all"))]
    with patch.multiple(dist, all_reduce=counted, **dict.fromkeys(others)):
        loss = head_loss(h, targets, head)
        (8 * loss).backward()
    assert not weight.grad[rows:].any(), "padding has a gradient"
    return loss.item(), h.grad[..., first : first + rows] / 8, sum(sent) / (B * T), rows


@pytest.fixture(scope="module", params=[(2, 2), (4, 4), (4, 2), (3, 3)], ids=str)
def answers(request):
    world_size, tp = request.param
    return tp, run(world_size, _split, tp)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_are_those_of_the_whole_logits(answers, case):
    tp, ranks = answers
    logits, targets = whole(case)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), targets.flatten())
    expected.backward()
    for start in range(0, len(ranks), tp):
        group = [rank[case] for rank in ranks[start : start + tp]]
        # fp32 holds a loss of order 10^4 to 10^-3, and one of order 10 to 10^-6
        assert group[0][0] == pytest.approx(expected.item(), rel=3e-7, abs=1e-7)
        assert {loss for loss, *_ in group} == {group[0][0]}, "not the same on every rank"
        gradient = torch.cat([columns for _, columns, _, _ in group], dim=-1)
        rounding = 2e-6 if case.dtype == torch.float32 else 2**-8
        torch.testing.assert_close(gradient.double(), exact.grad, rtol=rounding, atol=1e-8)


def test_three_floats_per_token_are_communicated(answers):
    """Whatever the vocabulary; gathering logits fails, for what would do it is taken away."""
    assert {rank[case][2] for rank in answers[1] for case in CASES} == {3}


def test_some_ranks_hold_no_token_id(answers):
    """The cases above are about empty ranks and padding only if there are such."""
    tp, ranks = answers
    rows = [[rank[case][3] for rank in ranks[:tp]] for case in CASES]
    assert any(0 in held for held in rows)
    assert any(n % 128 > 0 for held in rows for n in held)
    assert any(min(held) > 0 for held in rows)
