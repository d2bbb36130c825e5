"""Times of each rank, and which one the others wait for."""

import json
import threading
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.waiting import Waiting
from megatron_ngpt.train.loop import train
from megatron_ngpt.train.ranks import slowest
from tests.distributed import run
from tests.train.test_faults import job


@pytest.mark.parametrize(
    ("own", "stages", "rank", "cost"),
    [
        ([1.0, 1.0, 1.5, 1.0], 1, 2, 0.25),
        ([1.0, 1.19], 1, None, 0),  # 9.5 % of the step
        ([1.0, 1.0, 1.9, 1.9], 2, None, 0),  # another stage has other work
        ([1.0, 1.0, 1.4, 1.9], 2, 3, 0.25),
        ([1.0, 1.9], 2, None, 0),
        ([1.0], 1, None, 0),
    ],
)
def test_the_slowest_is_named_among_its_like(own, stages, rank, cost):
    found = slowest(own, 2.0, stages)
    assert (found.rank if found else None) == rank
    assert found is None or found.cost == pytest.approx(cost)


SECTIONS = {
    "zero 1": {},
    "zero 3": {"optim": {"zero_stage": 3}},
    "pp": {"parallel": {"pp": 2}},
    "tp": {"parallel": {"tp": 2}},
}


def _measured(mesh, corpus: str, folder: Path) -> dict[str, float]:
    """After a run, calls of ``wait`` in this thread: the clock goes on by one as it is read."""
    waits, original = {}, dist.Work.wait
    for name, sections in SECTIONS.items():
        logging = {"vitals_every": 2, "spectra_every": 0}
        train_ = {"steps": 6, "check_every": 0}
        settings = {**sections, "logging": logging, "train": train_}
        config, own, stages, _ = job(corpus, folder / name, settings)
        train(config, Engine(config, own), stages, ())
        ticks = count()
        with Waiting(lambda ticks=ticks: float(next(ticks))) as waiting:
            dist.all_reduce(torch.zeros(1))
            dist.barrier()
            thread = threading.Thread(target=dist.all_reduce, args=(torch.zeros(1),))
            thread.start()
            thread.join()
        waits[name] = waiting.seconds
    assert dist.Work.wait is original
    return waits


def test_every_rank_tells_its_times(toy_corpus, tmp_path):
    for waits in run(2, _measured, toy_corpus, tmp_path):
        assert set(waits.values()) == {2.0}
    for name in SECTIONS:
        lines = (tmp_path / name / "vitals.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["step"] for record in records] == [2, 4, 6], name
        for record in records:
            times = record["rank_seconds"]
            for rank in range(2):
                step, data, wait = (times[key][rank] for key in ("step", "data", "collective"))
                assert 0 < wait < step, (name, times)
                assert 0 < data < step, (name, times)
