"""AdamW with an explicit gate on small gradients (arXiv 2608.01284)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class GatedAdamW(torch.optim.Optimizer):
    """``w -= lr gate m_hat / d`` with ``d = sqrt(v_hat) + eps``, gate = sigmoid(a log(d / e)).

    Adam's own epsilon is such a gate in disguise: with a = 1, ``gate / d = 1 / (d + e)``. A smaller
    power a closes it more smoothly. Written as d^a / (d^a + e^a), which has no logarithm.

    State per parameter, as torch's AdamW has it: step, exp_avg, exp_avg_sq.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: of the averages of the gradient and of its square.
        eps: added to the root of the second average, against division by zero.
        gate_power: a.
        gate_eps: e, the size of d at which the gate is half open.
        weight_decay: decoupled, times lr.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        gate_power: float = 0.5,
        gate_eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "gate_power": gate_power,
            "gate_eps": gate_eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        d = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        opened = d.pow(group["gate_power"])
        opened.div_(opened + group["gate_eps"] ** group["gate_power"])
        step = state["exp_avg"] / (1 - beta1 ** state["step"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(step.mul_(opened).div_(d).mul_(group["lr"]))
