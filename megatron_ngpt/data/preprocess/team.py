"""The processes of a job that an MPI launcher started; without one, this process alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Team(Protocol):
    """Processes that run the same job together."""

    rank: int
    size: int
    mates: int
    """Processes of the team, this one included, that share this one's cores."""

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank (collective)."""

    def collect(self, value: Any) -> Iterable[Any]:
        """Every rank's value by rank, on every rank (collective)."""


class Alone:
    """A team of one."""

    rank, size, mates = 0, 1, 1

    def share(self, value: Any) -> Any:
        """The value."""
        return value

    def collect(self, value: Any) -> Iterable[Any]:
        """The value."""
        return [value]
