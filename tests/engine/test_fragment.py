import itertools

import torch

from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.parallel.shard import Shard


def shard(shape, origin):
    return Shard(shape, origin, real=shape, replicated=False)


def fragment(shard, start, length, flat=None, offset=0):
    spec = ParameterSpec("m.weight", (9, 9), 1, 0, "matrix")
    flat = torch.empty(0) if flat is None else flat
    return Fragment(spec, shard, start, length, flat, offset, 0)


def cuts(size):
    """Every (start, length) inside a flat range."""
    return ((a, b - a) for a, b in itertools.combinations_with_replacement(range(size + 1), 2))


def test_rectangles_tile_every_cut_of_every_small_matrix():
    """Filled with its own index, each rectangle must find the numbers of its place."""
    for rows, columns in itertools.product(range(1, 6), repeat=2):
        origin = (2, 3)
        whole = torch.arange(rows * columns).view(rows, columns)
        for start, length in cuts(rows * columns):
            piece = whole.flatten()[start : start + length]
            boxes = list(fragment(shard((rows, columns), origin), start, length).rectangles())
            assert len(boxes) <= 3
            assert [(b.start, b.stop) for b in boxes] == list(
                itertools.pairwise([0, *(b.stop for b in boxes)])
            )
            assert sum(b.stop - b.start for b in boxes) == length
            for box in boxes:
                top, left = (o - at for o, at in zip(box.offsets, origin, strict=True))
                there = whole[top : top + box.sizes[0], left : left + box.sizes[1]]
                assert torch.equal(box.view(piece), there)


def test_a_vector_is_one_rectangle_or_none():
    for start, length in cuts(7):
        boxes = list(fragment(shard((7,), (4,)), start, length).rectangles())
        assert boxes == ([((4 + start,), (length,), 0, length)] if length else [])


def test_whole_rows_are_one_rectangle():
    boxes = list(fragment(shard((5, 4), (0, 0)), 4, 12).rectangles())
    assert boxes == [((1, 0), (3, 4), 0, 12)]


def test_master_is_a_view_of_the_optimizer_s_flat_parameter():
    flat = torch.arange(10.0)
    piece = fragment(shard((5, 4), (0, 0)), 3, 4, flat, offset=2)
    piece.master.mul_(-1)
    assert flat.tolist() == [0, 1, -2, -3, -4, -5, 6, 7, 8, 9]
    assert piece.of(torch.arange(10, 20)).tolist() == [12, 13, 14, 15]
