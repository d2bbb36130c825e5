"""Selective activation checkpointing: of what is computed again, the outputs of some ops are kept.

A dispatch mode around the first forward notes these outputs, another around the second hands them
out in the same order instead of computing. torch's own selective checkpointing counts every
operation in between and refuses a second forward that has others, which ZeRO-3's gathering of
parameters gives it; only the ops that are kept have to be the same here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map_only

OPS = {
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
    ),
    "matmul": ("aten::mm", "aten::addmm"),
    "all_gather": (),
    "reduce_scatter": (),
    "all_to_all": (),
}
"""Names that ``train.recompute_keep`` knows, with torch's operators behind them; the rest of an op,
and all of a collective, is what calls :func:`op` by that name."""


def op(name: str, compute: Callable[[], Any]) -> Any:
    """``compute()``, as one op of this name: kept whole or not at all. Without autograd."""
    if torch.compiler.is_compiling():
        return compute()
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, _Mode):
            return mode.run(name, compute)
    return compute()


@contextmanager
def nothing() -> Iterator[None]:
    """Where what is computed inside is computed again by other means."""
    for mode in reversed(_get_current_dispatch_mode_stack()):
        if isinstance(mode, _Mode):
            with mode.paused():
                yield
            return
    yield


def contexts(names: Sequence[str]) -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """The two contexts that ``torch.utils.checkpoint`` asks for, around first and second forward.

    Args:
        names: of :data:`OPS`, those whose outputs are kept.
    """
    kept: list[tuple[str, Any]] = []
    return _Noting(names, kept), _Giving(names, kept)


class _Mode(TorchDispatchMode):
    """Sees every operation below autograd; those of some names go to :meth:`run`."""

    def __init__(self, names: Sequence[str], kept: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.kept, self.names, self.inside = kept, names, False
        self.by_torch = {torch_name: name for name in names for torch_name in OPS[name]}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = self.by_torch.get(func.name())
        if name is None or self.inside:
            return func(*args, **kwargs or {})
        return self.run(name, lambda: func(*args, **kwargs or {}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operations inside are part of another one."""
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def run(self, name: str, compute: Callable[[], Any]) -> Any:
        """``compute()`` as one op."""
        if self.inside or name not in self.names:
            return compute()
        with self.paused():
            return self.known(name, compute)

    def known(self, name: str, compute: Callable[[], Any]) -> Any:
        """The output of an op that is kept."""
        raise NotImplementedError


class _Noting(_Mode):
    def known(self, name: str, compute: Callable[[], Any]) -> Any:
        output = compute()
        self.kept.append((name, _detached(output)))
        return output


class _Giving(_Mode):
    def __enter__(self) -> _Giving:
        self.place = 0  # a backward in two passes, of inputs and of weights, comes here twice
        super().__enter__()
        return self

    def known(self, name: str, compute: Callable[[], Any]) -> Any:
        noted, output = self.kept[self.place]
        assert name == noted, f"{name} comes where {noted} came in the first forward"
        self.place += 1
        return _detached(output)


def _detached(output: Any) -> Any:
    """What autograd gives a history is another tensor, which does not hold what holds this."""
    return tree_map_only(Tensor, Tensor.detach, output)
