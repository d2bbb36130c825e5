import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.ops.documents import Documents, first_tokens
from megatron_ngpt.parallel.zigzag import places, tiles


def degrees(cp, ulysses):
    return Degrees(pp=1, dp=1, cp=cp, tp=1, ulysses=ulysses)


@pytest.mark.parametrize(("cp", "ulysses"), [(1, 1), (2, 2), (2, 1), (4, 2), (4, 4), (6, 3)])
def test_every_token_is_on_one_rank_and_as_many_on_each(cp, ulysses):
    held = [places(24, degrees(cp, ulysses), index) for index in range(cp)]
    assert torch.cat(held).sort().values.tolist() == list(range(24))
    assert {len(mine) for mine in held} == {24 // cp}


def test_ulysses_cuts_and_a_ring_folds():
    assert places(8, degrees(2, 2), 1).tolist() == [4, 5, 6, 7]
    assert places(8, degrees(2, 1), 0).tolist() == [0, 1, 6, 7]
    assert places(8, degrees(4, 2), 1).tolist() == [6, 7]
    assert places(8, degrees(4, 2), 2).tolist() == [2, 3]


@pytest.mark.parametrize(("length", "cp", "ulysses"), [(9, 2, 2), (6, 2, 1), (12, 8, 2)])
def test_lengths_that_cannot_be_shared_are_refused(length, cp, ulysses):
    with pytest.raises(ValueError, match=f"a sequence of {length} tokens .* multiple of"):
        places(length, degrees(cp, ulysses), 0)


def seen(ring, ids, masked):
    """How often each query [T] sees each key [T] over all groups and steps of a ring."""
    tokens, length = torch.tensor([ids]), len(ids)
    documents = Documents(first_tokens(tokens == 0)) if masked else None
    count = torch.zeros(length, length, dtype=torch.int64)
    for mine in range(ring):
        for theirs in range(ring):
            rows, columns = (places(length, degrees(ring, 1), n) for n in (mine, theirs))
            for tile in tiles(mine, theirs, ring, length, documents):
                q, k = rows[tile.queries], columns[tile.keys]
                mask = torch.ones(len(q), len(k)).tril() if tile.causal else torch.ones(1, 1)
                count[q[:, None], k] += mask.long()
    return count


@given(st.integers(2, 4), st.data())
def test_every_query_sees_each_key_up_to_it_in_its_document_once(ring, data):
    length = 2 * ring * data.draw(st.integers(1, 5))
    ids = data.draw(st.lists(st.integers(0, 4), min_size=length, max_size=length))
    first = first_tokens(torch.tensor(ids) == 0)
    at = torch.arange(length)
    causal = at <= at[:, None]
    assert torch.equal(seen(ring, ids, masked=False), causal.long())
    assert torch.equal(seen(ring, ids, masked=True), (causal & (at >= first[:, None])).long())


@pytest.mark.parametrize("ring", [2, 3, 8])
def test_all_groups_of_a_ring_have_the_same_work(ring):
    length, size = 16 * ring, lambda s: s.stop - s.start
    work = []
    for mine in range(ring):
        found = [t for theirs in range(ring) for t in tiles(mine, theirs, ring, length, None)]
        work.append(sum(size(t.queries) * size(t.keys) / (1 + t.causal) for t in found))
    assert len(set(work)) == 1
