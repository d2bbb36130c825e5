"""One launch of a kernel as a value, so that it can be run, or compiled and read without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_PLANNED = 132
"""Multiprocessors of the chip that a launch without a device is planned for: an H100 or H200."""


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid and everything it is called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    """Tensors, None for a tensor that is not there, and numbers, in order."""
    constants: dict[str, Any]
    """Values that are compiled in, by name."""
    warps: int = 4

    def __call__(self) -> None:
        """Run it on the device of its tensors."""
        # products and sums may become one rounding, as the default was before Triton 3.10
        self.kernel[self.grid](
            *self.arguments, **self.constants, num_warps=self.warps, enable_fp_fusion=True
        )


Launcher = Callable[[Launch], None]


def run(launch: Launch) -> None:
    """The launcher of real life."""
    launch()


def power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def warps_for(elements: int, each: int = 8) -> int:
    """Groups of 32 threads so that each has about so many of a block's elements, at most 16."""
    return max(1, min(16, power_of_two(elements // (32 * each))))


def programs(x: Tensor, most: int, each: int = 2) -> int:
    """How many programs share the work where each adds up a part of a sum, at most ``most``.

    Depends on the device alone, so that sums come out the same each time.
    """
    if x.device.type == "cuda":
        count = torch.cuda.get_device_properties(x.device).multi_processor_count
    else:
        count = _PLANNED if x.device.type == "meta" else 3
    return max(1, min(most, count * each))
