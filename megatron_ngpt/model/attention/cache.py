"""What outlives one call of attention: keys and values of earlier tokens, values of layer 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeyValueCache:
    """Keys [B, S, K * maps, map_dim] and values [B, S, K, head_dim]; grows with every call."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values and return all of them."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=1)
            values = torch.cat((self.values, values), dim=1)
        self.keys, self.values = keys, values
        return keys, values


@dataclass
class FirstValues:
    """Values of the first layer in one forward pass, for value residuals (arXiv 2410.17897)."""

    values: Tensor | None = None

    def join(self, values: Tensor) -> Tensor:
        """A layer's values averaged with the first layer's; the first layer's are kept."""
        if self.values is None:
            self.values = values
        return 0.5 * (values + self.values)
