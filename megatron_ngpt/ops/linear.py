"""Matrices: linear maps and embedding tables that compute in the dtype of the activations.

A weight may be an fp32 master (ZeRO 0 and 3) or a bf16 copy (ZeRO 1 and 2); casting where it is
used makes both the same computation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """``x @ weight.T`` without bias, in the dtype of ``x``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """Rows of a table by token id, in a given dtype.

    With ``first_row`` set, the table holds the rows from there on and every other id gives zeros.
    """

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.first_row: int | None = None
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Integer ids [...] -> [..., width]; cast after the lookup, which touches few rows."""
        if self.first_row is None:
            return F.embedding(tokens, self.weight).to(self.dtype)
        rows = tokens - self.first_row
        elsewhere = (rows < 0) | (rows >= self.weight.shape[0])
        found = F.embedding(rows.masked_fill(elsewhere, 0), self.weight).to(self.dtype)
        return found.masked_fill(elsewhere[..., None], 0)
