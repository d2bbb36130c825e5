"""Where documents end, told by the .idx, is what marks in the text would tell."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.config import IGNORED, Config, DataConfig, ParallelConfig
from megatron_ngpt.data.blend import BlendStream
from megatron_ngpt.data.corpus import Share, Stage, TokenRange, split_corpus
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter
from megatron_ngpt.data.loader import BatchReader
from megatron_ngpt.data.stream import SampleStream, document_ends
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.ops.documents import targets_within
from megatron_ngpt.parallel.context import shared_inputs

EOD = 0


def bodies(seed: int, count: int) -> list[np.ndarray]:
    """Documents of 0 to 11 ids, none of them EOD."""
    random = np.random.default_rng(seed)
    return [random.integers(1, 60, random.integers(0, 12)) for _ in range(count)]


def write(prefix, documents) -> IndexedDataset:
    with IndexedWriter(prefix, "uint16") as writer:
        for document in documents:
            writer.add_document(document)
    return IndexedDataset(prefix)


def whole(dataset) -> TokenRange:
    return TokenRange(dataset, 0, dataset.token_count)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=9),
    start=st.integers(0, 200),
    count=st.integers(1, 90),
)
def test_ends_are_those_of_the_documents_of_endless_text(tmp_path_factory, lengths, start, count):
    """Documents of several sequences, of none, of no tokens; pieces that run over the end."""
    if not sum(map(sum, lengths)):
        lengths = [*lengths, [1]]
    prefix = tmp_path_factory.mktemp("ends") / "c"
    with IndexedWriter(prefix, "int32") as writer:
        for sequences in lengths:
            writer.add_document(np.arange(sum(sequences)), sequences)
    ends = [n == size for size in map(sum, lengths) for n in range(1, size + 1)]
    endless = [ends[n % len(ends)] for n in range(start, start + count)]
    corpus = whole(IndexedDataset(prefix))
    (found,) = document_ends([(corpus, start)], count)
    assert found.tolist() == endless


def test_a_flat_file_ends_once(tmp_path):
    np.arange(100, 110, dtype=np.uint16).tofile(tmp_path / "x.bin")
    corpus = whole(FlatDataset(tmp_path / "x.bin"))
    (found,) = document_ends([(corpus, 15)], 12)
    assert np.flatnonzero(found).tolist() == [4]


def reader(stream, documents: bool, **changes) -> BatchReader:
    return BatchReader(
        stream=stream, global_batch=12, micro_batch=3, dp=2, dp_rank=1, vocab_size=60,
        documents=documents, **changes,
    )  # fmt: skip


def masked(batch) -> torch.Tensor:
    """Targets where the marks alone say what ends a document."""
    return targets_within(batch.tokens, batch.targets, EOD)


@pytest.mark.parametrize("unit", [0, 24])
def test_a_marked_corpus_gives_the_targets_that_its_marks_give(tmp_path, unit):
    """Blends, stages, held-back parts, shuffle units: the .idx and the marks agree everywhere."""
    made = [write(tmp_path / f"{n}", [[*ids, EOD] for ids in bodies(n, 60)]) for n in range(3)]
    parts = [split_corpus(dataset, 0.3)[0] for dataset in made]
    blends = ((0, 1), (1, 2), (2, 0))
    stages = [
        Stage(400 * at, tuple(Share(parts[n], f"{n}", n + 1) for n in blend))
        for at, blend in enumerate(blends)
    ]
    stream = BlendStream(stages, 8, seed=3, unit=unit)
    for step in range(15):
        ours, _ = reader(stream, documents=True).read(12 * step)
        marks, _ = reader(stream, documents=False).read(12 * step)
        assert torch.equal(ours.tokens, marks.tokens)
        assert torch.equal(ours.targets, masked(marks))
        assert (ours.targets == IGNORED).any()


def test_without_marks_documents_end_in_the_same_places(tmp_path):
    """The same documents with the id 59 in the place of the mark."""
    documents = bodies(1, 80)
    marked, plain = (
        whole(write(tmp_path / f"{end}", [[*ids, end] for ids in documents])) for end in (EOD, 59)
    )
    for step in range(9):
        ours, _ = reader(SampleStream(plain, 8, seed=3), documents=True).read(12 * step)
        marks, _ = reader(SampleStream(marked, 8, seed=3), documents=False).read(12 * step)
        assert torch.equal(ours.targets == IGNORED, masked(marks) == IGNORED)


class _Mesh:
    def __init__(self, degrees: Degrees, rank: int) -> None:
        self.degrees, self.rank = degrees, rank

    def index(self, axis: str) -> int:
        return self.rank


@pytest.mark.parametrize(("cp", "ulysses"), [(1, 0), (2, 0), (4, 2), (4, 1)])
def test_every_rank_of_a_sequence_gets_what_marks_would_give(cp, ulysses):
    rows = torch.randint(5, (3, 2, 33), generator=torch.Generator().manual_seed(2))
    tokens, targets = rows[..., :-1], rows[..., 1:]
    degrees = Degrees.of(ParallelConfig(cp=cp, ulysses=ulysses), cp)
    for rank in range(cp):
        mesh = _Mesh(degrees, rank)
        by_marks, by_targets = (
            shared_inputs(Config(data=DataConfig(document_mask=True, eod=eod)), mesh, tokens, given)
            for eod, given in ((EOD, targets), (-1, targets_within(tokens, targets, EOD)))
        )
        assert all(torch.equal(a, b) for a, b in zip(by_marks, by_targets, strict=True))
