"""Less memory for more computation: what backward computes again instead of finding it kept.

Activation checkpointing (arXiv 1604.06174) of a function, in one piece, but for some ops, or piece
by piece over the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_ngpt.keep import contexts, nothing

Map = Callable[[Tensor], Tensor]


def computed_again(function: Callable[..., Tensor], *args: Any, keep: Sequence[str] = ()) -> Tensor:
    """``function(*args)``, keeping the arguments for backward and the outputs of ops in ``keep``.

    Args:
        function: computed once more in backward.
        args: its arguments.
        keep: names of ``keep.OPS``.
    """
    if not keep:
        output: Tensor = checkpoint(function, *args, use_reentrant=False)
    else:
        around = partial(contexts, keep)
        output = checkpoint(function, *args, use_reentrant=False, context_fn=around)
    return output


def in_tiles(function: Map, x: Tensor, size: int) -> Tensor:
    """A function of single tokens on ``size`` of them at a time, each tile computed again.

    Args:
        function: [B, t, D] -> [B, t, D], whatever t.
        x: [B, T, D].
        size: tokens of a tile; the last may be shorter.
    """
    with nothing():  # a tile's ops are computed again whether or not somebody keeps them
        return torch.cat([computed_again(function, tile) for tile in x.split(size, dim=1)], dim=1)


def on_host(wanted: bool, device: torch.device) -> AbstractContextManager:
    """Context in which what is kept for backward lies in the host's memory."""
    if not wanted:
        return nullcontext()
    made: AbstractContextManager = torch.autograd.graph.save_on_cpu(
        pin_memory=device.type == "cuda"
    )
    return made
