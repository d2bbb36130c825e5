"""Bytes that a rank's collectives work on in one step, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Adds up the bytes of every collective called inside, by operation.

    Counted is the whole tensor a collective works on: the full buffer of an all-reduce, the
    gathered side of an all-gather, the unreduced side of a reduce-scatter, and what is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        name = func.name()
        counts = name.startswith("c10d::") and "recv" not in name and "barrier" not in name
        if counts and _group_size(args) > 1:
            self.bytes[name.removeprefix("c10d::").strip("_")] += max(map(_size, args[:2]))
        return func(*args, **(kwargs or {}))


def _group_size(args: tuple[Any, ...]) -> int:
    """Ranks of the process group among a collective's arguments."""
    boxed = next(a for a in args if isinstance(a, torch.ScriptObject) and "Group" in str(a._type()))
    return dist.ProcessGroup.unbox(boxed).size()


def _size(argument: Any) -> int:
    if isinstance(argument, Tensor):
        return argument.numel() * argument.element_size()
    return sum(map(_size, argument)) if isinstance(argument, list | tuple) else 0
