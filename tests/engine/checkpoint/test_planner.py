"""Boxes through the planners and the storage, the ranks played by one process."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_ngpt.engine.checkpoint import storage
from megatron_ngpt.engine.checkpoint.boxes import Boxes
from megatron_ngpt.engine.checkpoint.planner import BoxLoadPlanner, BoxSavePlanner
from megatron_ngpt.engine.checkpoint.storage import Reader, Writer

DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
State = dict[str, Boxes]


def save(folder: Path, ranks: list[State]) -> None:
    """What torch.distributed.checkpoint does with a planner and a writer on every rank."""
    planners, writers, plans = [], [], []
    for rank, state in enumerate(ranks):
        planners.append(BoxSavePlanner())
        writers.append(Writer(rank, begin=lambda: folder, whole=lambda _: None))
        planners[-1].set_up_planner(state, is_coordinator=rank == 0)
        plans.append(planners[-1].create_local_plan())
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [
        writer.write_data(planner.finish_plan(plan), planner).wait()
        for planner, writer, plan in zip(planners, writers, plans, strict=True)
    ]
    writers[0].finish(metadata, results)


def load(folder: Path, state: State) -> None:
    reader, planner = Reader(folder), BoxLoadPlanner()
    metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner)


def cut(draw, whole: Tensor, offsets: tuple[int, ...]) -> list[tuple[tuple[int, ...], Tensor]]:
    """Cut a box by straight lines, again and again, into disjoint boxes."""
    ways = [dim for dim, size in enumerate(whole.shape) if size > 1]
    if not ways or draw(st.integers(0, 3)) == 0:
        return [(offsets, whole)]
    dim = draw(st.sampled_from(ways))
    at = draw(st.integers(1, whole.shape[dim] - 1))
    further = tuple(o + at * (d == dim) for d, o in enumerate(offsets))
    head, tail = whole.split([at, whole.shape[dim] - at], dim)
    return cut(draw, head, offsets) + cut(draw, tail, further)


def deal(draw, tensors: dict[str, Tensor], ranks: int) -> list[State]:
    """Every tensor cut up anew, each piece given to one rank, or alike to two."""
    states = [{n: Boxes(tuple(t.shape)) for n, t in tensors.items()} for _ in range(ranks)]
    for name, whole in tensors.items():
        for offsets, values in cut(draw, whole, (0,) * whole.dim()):
            for rank in draw(st.sets(st.integers(0, ranks - 1), min_size=1, max_size=2)):
                states[rank][name].parts[offsets] = values
    return states


@st.composite
def deals(draw) -> tuple[list[State], list[State], int]:
    shapes = draw(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=2), max_size=4))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensors = {
        f"kind/{number}": (torch.rand(shape, generator=generator) * 255).to(dtype)
        for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }
    saved = deal(draw, tensors, draw(st.integers(1, 4)))
    wanted = deal(draw, tensors, draw(st.integers(1, 4)))
    return saved, wanted, draw(st.sampled_from([1, 100, 1 << 30]))


@settings(max_examples=60, deadline=None)
@given(deals())
def test_whatever_pieces_were_saved_fill_whatever_pieces_are_wanted(case):
    saved, wanted, file_bytes = case
    before, storage.FILE_BYTES = storage.FILE_BYTES, file_bytes
    try:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder), saved)
            for state in wanted:
                empty = {
                    name: Boxes(b.shape, {o: torch.zeros_like(v) for o, v in b.parts.items()})
                    for name, b in state.items()
                }
                load(Path(folder), empty)
                for name, boxes in state.items():
                    for offsets, values in boxes.parts.items():
                        assert torch.equal(empty[name].parts[offsets], values), (name, offsets)
    finally:
        storage.FILE_BYTES = before


def whole(values: Tensor) -> Boxes:
    return Boxes(tuple(values.shape), {(0,) * values.dim(): values})


def test_what_ranks_hold_alike_is_written_once(tmp_path):
    values = torch.arange(1000.0)
    save(tmp_path, [{"kind/x": whole(values)}, {"kind/x": whole(values)}])
    written = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 4000 <= written < 4500


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind/y": whole(torch.zeros(4, 3))}, "the checkpoint has no tensor kind/y"),
        ({"kind/x": whole(torch.zeros(3, 4))}, r"kind/x is \(4, 3\) in the checkpoint"),
    ],
)
def test_what_was_not_saved_cannot_be_loaded(tmp_path, wanted, message):
    save(tmp_path, [{"kind/x": whole(torch.ones(4, 3))}])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, wanted)


@pytest.mark.parametrize(
    ("rows", "problem"), [((0, 0), "invalid fill"), ((0, 1), "overlapping"), ((0, 3), "bounds")]
)
def test_pieces_that_do_not_make_up_the_tensor_are_refused(tmp_path, rows, problem):
    pieces = [{"kind/x": Boxes((5, 3), {(row, 0): torch.ones(3, 3)})} for row in rows]
    # torch before 2.13 says no more than that the plan is not valid
    with pytest.raises(ValueError, match=f"{problem}|Failed to validate"):
        save(tmp_path, pieces)
    assert not list(tmp_path.iterdir())
