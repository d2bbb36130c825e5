"""How many ranks lie along each axis, and where a rank sits: arithmetic, no process group."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ngpt.config import ParallelConfig

AXES = ("pp", "dp", "cp", "tp")
"""Mesh axes from outermost to innermost: consecutive ranks differ in tp first, so that tensor
parallelism, which talks most, stays inside a node."""


@dataclass(frozen=True)
class Degrees:
    """Ranks along each mesh axis; their product is the world size."""

    pp: int
    dp: int
    cp: int
    tp: int
    ulysses: int = 1
    """Of the cp ranks, how many exchange heads; consecutive ones."""

    @classmethod
    def of(cls, parallel: ParallelConfig, world_size: int) -> Degrees:
        """Degrees for this many processes; dp is what tp, pp and cp leave.

        Raises:
            ValueError: when the product of tp, pp and cp does not divide the world size.
        """
        model = parallel.tp * parallel.pp * parallel.cp
        if world_size % model:
            raise ValueError(
                f"{world_size} processes cannot be split into parallel.tp * pp * cp = "
                f"{parallel.tp} * {parallel.pp} * {parallel.cp} = {model}: start a multiple of "
                f"{model} processes or lower a degree"
            )
        return cls(
            pp=parallel.pp,
            dp=world_size // model,
            cp=parallel.cp,
            tp=parallel.tp,
            ulysses=parallel.ulysses,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Degrees in the order of :data:`AXES`."""
        return (self.pp, self.dp, self.cp, self.tp)

    @property
    def ring(self) -> int:
        """Groups of Ulysses ranks that pass keys and values to each other."""
        return self.cp // self.ulysses

    @property
    def replicas(self) -> int:
        """Ranks that hold the same parameters and see other tokens: what ZeRO shards over."""
        return self.dp * self.cp

    def coordinates(self, rank: int) -> dict[str, int]:
        """Index of a global rank along each axis."""
        found = {}
        for axis, degree in reversed(list(zip(AXES, self.shape, strict=True))):
            rank, found[axis] = divmod(rank, degree)
        return found
