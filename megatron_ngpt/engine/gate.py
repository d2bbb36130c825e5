"""Whether an optimizer's next steps happen: the one place where all of them pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Gate:
    """Stands before an optimizer's ``step``. Shut, the step is left out with its hooks: weights,
    averages and their counter stay, whatever wraps the optimizer goes on as after a step.

    Args:
        optimizer: whose ``step`` this becomes.
        prepare: makes the state that a first step would make.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, prepare: Callable[[], None]) -> None:
        self.prepare, self.open = prepare, True
        self.inner = optimizer.step
        vars(optimizer)["step"] = self

    def __call__(self, *args: Any) -> Any:
        """The optimizer's step."""
        if self.open:
            return self.inner(*args)
        self.prepare()  # DeepSpeed looks for it after its first step
        return None
