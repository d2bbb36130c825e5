"""AdamW with a gate of chosen smoothness in place of its epsilon."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from megatron_ngpt.engine.adamw import Uncompiled

_SMALLEST = 1e-30
"""Keeps 0 / 0 from being no number where a gradient was always 0."""


class GatedAdamW(Uncompiled):
    """``lr * sigmoid(a log(d / eps)) * m / d`` with d the root of the second average.

    m and d are Adam's bias-corrected averages. a = 1 is AdamW: the gate is d / (d + eps) then. Its
    state has AdamW's names, so checkpoints of one resume the other.

    Source: arXiv 2608.01284v2.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the two averages.
        eps: where the gate is one half.
        gate: its exponent a.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        gate: float,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "gate": gate}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        assert closure is None, "the engine has computed the loss"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return None

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        m = state["exp_avg"].lerp_(grad, 1 - first)
        v = state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        correction = 1 - second ** state["step"]
        d = (v / correction).sqrt_().add_(_SMALLEST)
        gate = (d / group["eps"]).log_().mul_(group["gate"]).sigmoid_()
        step_size = group["lr"] / (1 - first ** state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(gate.mul_(m).div_(d).mul_(step_size))
