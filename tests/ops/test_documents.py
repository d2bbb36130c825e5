import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.config import IGNORED
from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.ops.documents import Documents, first_tokens, targets_within
from tests.ops.compare import assert_same_maths, normal

EOD = 0


def test_places_begin_anew_after_the_token_that_ends_a_document():
    tokens = torch.tensor([[5, 6, EOD, 7, EOD, EOD, 8], [EOD, 1, 2, 3, 4, 5, EOD]])
    assert first_tokens(tokens == EOD).tolist() == [[0, 0, 0, 3, 3, 5, 6], [0, 1, 1, 1, 1, 1, 1]]


def test_what_follows_a_document_is_no_target():
    tokens, targets = torch.tensor([[5, EOD, 7]]), torch.tensor([[EOD, 7, 8]])
    assert targets_within(tokens, targets, EOD).tolist() == [[EOD, IGNORED, 8]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_documents_cover_the_sequence_and_end_with_their_end(ids):
    documents = list(Documents(first_tokens(torch.tensor([ids]) == EOD)))
    assert [start for _, start, _ in documents[1:]] == [stop for *_, stop in documents[:-1]]
    assert (documents[0][1], documents[-1][2]) == (0, len(ids))
    for _, start, stop in documents:
        assert EOD not in ids[start : stop - 1]
        assert ids[stop - 1] == EOD or stop == len(ids)


def test_offsets_are_those_of_all_sequences_laid_end_to_end():
    documents = Documents(torch.tensor([[0, 0, 2, 2], [0, 1, 1, 1]]))
    assert documents.offsets.tolist() == [0, 2, 4, 5, 8]
    assert documents.offsets.dtype == torch.int32
    assert documents.longest == 3


def masked_attention(q, k, v, first, scale):
    """Softmax under a [T, T] mask: not the future, not before the own document's first token."""
    repeat, places = q.shape[2] // k.shape[2], torch.arange(q.shape[1], device=q.device)
    k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
    seen = (places <= places[:, None]) & (places >= first[..., None])
    scores = scale * torch.einsum("btnh,bsnh->bnts", q, k)
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bnts,bsnh->btnh", weights, v)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
def test_attention_keeps_to_each_document(heads, dtype, device):
    tokens = torch.randint(5, (2, 23), generator=torch.Generator().manual_seed(1))
    first = first_tokens(tokens == EOD).to(device)
    q, k, v = (normal(2, 23, n, 8, seed=s) for s, n in enumerate((heads[0], *2 * heads[1:])))
    assert_same_maths(
        lambda q, k, v: sdpa_attention(q, k, v, 0.4, Documents(first)),
        lambda q, k, v: masked_attention(q, k, v, first, 0.4),
        [x.to(dtype) for x in (q, k, v)],
        dtype,
        device,
    )
