"""Names for stretches of a step in a trace, put around methods for as long as one profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch.profiler import record_function

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.projection import Projection
from megatron_ngpt.model.ngpt import NGPT

STEP, DATA, MODEL, LOSS, PROJECTION = "ngpt::step", "data", "ngpt::model", "loss", "projection"
OPTIMIZER = "Optimizer.step#"
"""How torch begins the name of its own range."""

_PLACES: tuple[tuple[type, str, str], ...] = (
    (Engine, "train_step", STEP),
    (NGPT, "forward", MODEL),
    (NGPT, "_loss", LOSS),
    (Projection, "__call__", PROJECTION),
)


@contextmanager
def named() -> Iterator[None]:
    """Inside, every call of these methods is a range of the trace."""
    with ExitStack() as stack:
        for owner, method, name in _PLACES:
            original = getattr(owner, method)
            stack.callback(setattr, owner, method, original)
            setattr(owner, method, _in_range(original, name))
        yield


def _in_range(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return method(*args, **kwargs)

    return call
