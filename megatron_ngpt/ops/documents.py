"""Several documents in one sequence: attention, positions and loss keep to one of them.

A document ends with a token whose target is no target. Shapes: B sequences of T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from megatron_ngpt.config import IGNORED


def first_tokens(ends: Tensor) -> Tensor:
    """Place of the first token of each token's document, int64 [..., T].

    Args:
        ends: bool [..., T], whether a token is its document's last. A document begins with the
            sequence or after such a token.
    """
    places = torch.arange(ends.shape[-1], device=ends.device)
    begins = torch.zeros_like(ends, dtype=torch.int64)
    begins[..., 1:] = places[1:].where(ends[..., :-1], 0)
    return begins.cummax(-1).values


def targets_within(tokens: Tensor, targets: Tensor, eod: int) -> Tensor:
    """Targets of which those in the next document are :data:`IGNORED`: after ``eod``, and where the
    loader, which knows where documents end, has said so already."""
    return targets.masked_fill(tokens == eod, IGNORED)


class Documents:
    """Where the documents of B sequences lie.

    Args:
        first: [B, T], from :func:`first_tokens`; read back to the host once, when bounds are asked.
    """

    def __init__(self, first: Tensor) -> None:
        self.first, self.device, self.length = first, first.device, first.shape[1]

    @cached_property
    def bounds(self) -> list[list[int]]:
        """Of each sequence: where its documents begin, and T."""
        places = torch.arange(self.length, device=self.device)
        found: list[list[int]] = [[] for _ in self.first]
        for row, place in (self.first == places).nonzero().tolist():
            found[row].append(place)
        for bounds in found:
            bounds.append(self.length)
        return found

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Every document: its sequence, first token and one past its last."""
        for row, bounds in enumerate(self.bounds):
            for start, stop in pairwise(bounds):
                yield row, start, stop

    @cached_property
    def offsets(self) -> Tensor:
        """Where documents begin in the B * T tokens laid end to end, and B * T; int32."""
        begins = [row * self.length + start for row, start, _ in self]
        total = len(self.bounds) * self.length
        return torch.tensor([*begins, total], dtype=torch.int32, device=self.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(stop - start for _, start, stop in self)
