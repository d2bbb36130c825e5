"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.jobs import write_corpus

torch.set_num_threads(1)  # for matrices this small threads only wait for each other

# timings never gate a test
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# rooms whose tests share something of the machine; they run one after the other, and first, because
# they wait most of their time
ALONE = ("slurm",)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (pytest-xdist), a file's tests stay together for the sake of fixtures."""
    for item in items:
        room = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(room if room in ALONE else item.location[0]))
    items.sort(key=lambda item: item.path.parent.name not in ALONE)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference traces and books beside the checkout; tests skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory) -> str:
    """Prefix of a small pair for :func:`tests.jobs.words`."""
    return write_corpus(tmp_path_factory.mktemp("toy"))
