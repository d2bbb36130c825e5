"""Fixtures shared by all tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.jobs import write_corpus

torch.set_num_threads(1)  # for matrices this small threads only wait for each other

# timings never gate a test
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

SLURM = "tests/slurm"
"""Its tests share one cluster: they go one after the other, and first, as most of it is waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers of pytest-xdist take whole files, for the sake of fixtures, in the order collected.

    xdist_group marks would say the same, but pytest 9.2 makes pytest-xdist 3.8 pass over them
    (github.com/pytest-dev/pytest-xdist/issues/1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SLURM if nodeid.startswith(SLURM) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Files(config, log)


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
