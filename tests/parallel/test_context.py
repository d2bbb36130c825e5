"""Attention over shared sequences is attention over whole ones; documents stay apart in it."""

from dataclasses import replace

import pytest
import torch

from megatron_ngpt.config import IGNORED, Config, DataConfig, ParallelConfig, TrainConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.ops.documents import Documents, first_tokens
from megatron_ngpt.parallel.context import context_attention, gather_sequences, shared_inputs
from megatron_ngpt.parallel.zigzag import places
from tests.distributed import CPU, run
from tests.ops.compare import normal
from tests.parallel.training import MODEL, build

EOD, T = 0, 48
MODES = {2: (1, 2), 4: (1, 2, 4)}
HEADS = ((4, 4), (8, 4))


def some_ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(9, (rows, T), generator=torch.Generator().manual_seed(2))


def operands(heads):
    q, k, v = (normal(2, T, n, 8, seed=s) for s, n in enumerate((heads[0], heads[1], heads[1])))
    return [q, k, v], normal(2, T, heads[0], 8, seed=9)


def _attend(mesh, cases):
    """Outputs and gradients of each case, put together, on every rank."""
    found = {}
    for ulysses, heads, masked in cases:
        degrees = Degrees(pp=1, dp=1, cp=mesh.degrees.dp, tp=1, ulysses=ulysses)
        shared = Mesh.build(degrees, CPU)
        mine = places(T, degrees, shared.index("cp"))
        whole, weight = operands(heads)
        leaves = [x[:, mine].requires_grad_() for x in whole]
        documents = Documents(first_tokens(some_ids() == EOD)) if masked else None
        attend = context_attention(shared, sdpa_attention, torch.float32)
        out = attend(*leaves, 0.4, documents)
        out.backward(weight[:, mine])
        tensors = (out.detach(), *(leaf.grad for leaf in leaves))
        found[ulysses, heads, masked] = [gather_sequences(x, shared) for x in tensors]
    return found


@pytest.mark.parametrize("cp", MODES)
def test_outputs_and_gradients_are_those_of_whole_sequences(cp):
    cases = [(u, heads, masked) for u in MODES[cp] for heads in HEADS for masked in (False, True)]
    by_rank = run(cp, _attend, cases)
    for case in cases:
        _, heads, masked = case
        whole, weight = operands(heads)
        leaves = [x.requires_grad_() for x in whole]
        documents = Documents(first_tokens(some_ids() == EOD)) if masked else None
        out = sdpa_attention(*leaves, 0.4, documents)
        out.backward(weight)
        expected = (out.detach(), *(leaf.grad for leaf in leaves))
        for rank in by_rank:
            for found, exact in zip(rank[case], expected, strict=True):
                torch.testing.assert_close(found, exact, rtol=0, atol=5e-6)


def config_of(cp: int, ulysses: int, mask: bool = True) -> Config:
    return Config(
        model=replace(MODEL, layers=2, vocab_size=40),
        parallel=ParallelConfig(cp=cp, ulysses=ulysses),
        data=DataConfig(seq_len=T, document_mask=mask, eod=EOD),
        train=TrainConfig(global_batch=2, micro_batch=2),
    )


def losses(logits, tokens):
    """Loss of every token [B, T - 1], in nats."""
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    ).view(len(tokens), -1)


CHANGED = slice(20, 26)
"""Part of the middle document of :func:`three_documents`."""


def three_documents(changed: bool) -> torch.Tensor:
    """Two sequences of documents of 17, 13 and 18 tokens; the second's may have other tokens."""
    tokens = 1 + torch.randint(39, (2, T), generator=torch.Generator().manual_seed(4))
    tokens[:, [16, 29]] = EOD
    if changed:
        tokens[:, CHANGED] = 40 - tokens[:, CHANGED]
    return tokens


def _losses(mesh, modes):
    found = {}
    for ulysses, mask in modes:
        engine = build(mesh, config_of(mesh.degrees.dp, ulysses, mask))
        pair = [three_documents(changed) for changed in (False, True)]
        found[ulysses, mask] = [losses(engine.logits(tokens), tokens) for tokens in pair]
        engine.deepspeed.destroy()
    return found


@pytest.mark.parametrize("cp", [1, 2, 4])
def test_changing_a_document_never_changes_the_loss_of_another(cp):
    """To the last bit; without the mask it does, and inside the document it does."""
    modes = [(u, True) for u in MODES.get(cp, (1,))] + [(1, False)]
    for mode, (before, after) in run(cp, _losses, modes)[0].items():
        others = torch.ones(T - 1, dtype=torch.bool)
        others[16:30] = False  # what follows a document's end is predicted by no document
        assert not torch.equal(before[:, 19:29], after[:, 19:29])
        assert torch.equal(before[:, :16], after[:, :16])
        assert torch.equal(before[:, others], after[:, others]) == mode[1], mode


def test_positions_begin_anew_and_foreign_targets_do_not_count():
    mesh = run(1, _inputs)[0]
    tokens, targets, positions, first = mesh
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1]]
    assert first.tolist() == [[0, 0, 0, 3, 3, 5, 6, 6]]
    assert targets.tolist() == [[6, EOD, IGNORED, EOD, IGNORED, IGNORED, 9, 9]]
    assert tokens.tolist() == [[5, 6, EOD, 7, EOD, EOD, 8, 9]]


def _inputs(mesh):
    tokens = torch.tensor([[5, 6, EOD, 7, EOD, EOD, 8, 9]])
    targets = torch.tensor([[6, EOD, 7, EOD, EOD, 8, 9, 9]])
    return shared_inputs(config_of(1, 1), mesh, tokens, targets)
