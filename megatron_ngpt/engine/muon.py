"""Muon: matrices of blocks move by a momentum without its singular values; the rest by AdamW.

With M = U S V^T the average of a matrix's gradient, looked ahead as Nesterov does, and O about
U V^T, an [A, B] matrix moves by ``0.2 sqrt(max(A, B)) lr O``: its root mean square is that of
AdamW's steps, so that learning rate and weight decay mean the same in both.

MuonH keeps every matrix's Frobenius norm R: ``W = R unit(W - lr R unit(O))``, without weight decay.
R is what the norm was before the step, so there is nothing to save beside the matrix.

Sources: Jordan et al., Muon (2024); arXiv 2502.16982 for the factor; torch.optim.Muon, whose steps
these are but for the precision of the iteration; Wen et al., hyperball optimizers (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any, overload

import torch
from torch import Tensor

from megatron_ngpt.engine.adamw import AdamW

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of x -> a x + b x^3 + c x^5: five of them take (0, 1] to about 1 (Jordan et al.)."""
_ITERATIONS, _EPS = 5, 1e-7
_adamw_step: Callable[[AdamW], None] = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Muon(AdamW):
    """Groups with ``muon`` by Muon, which keeps ``exp_avg`` alone; the others by torch's AdamW.

    Args:
        params: groups with ``muon`` and ``weight_decay``; matrices of ``muon`` are whole.
        lr: learning rate.
        betas: AdamW's.
        eps: AdamW's.
        momentum: decay of Muon's average.
        fixed_radius: whether its matrices keep their Frobenius norm (MuonH).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        fixed_radius: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        self.momentum, self.fixed_radius = momentum, fixed_radius

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        assert closure is None, "the engine has computed the loss"
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            _adamw_step(self)
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._move(parameter, self._momentum(parameter), group)
        return None

    def _momentum(self, parameter: Tensor) -> Tensor:
        """The gradient's average with this gradient in it, and once more ahead."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        average = state["exp_avg"].lerp_(parameter.grad, 1 - self.momentum)
        return parameter.grad.lerp(average, self.momentum)

    def _move(self, parameter: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
        # processors without bf16 products would take ten times as long for them
        dtype = torch.bfloat16 if parameter.is_cuda else torch.float32
        update, lr = orthogonal(momentum, dtype).to(parameter.dtype), group["lr"]
        if not self.fixed_radius:
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.sub_(update, alpha=0.2 * max(parameter.shape) ** 0.5 * lr)
            return
        radius = _norm(parameter)
        parameter.sub_(update.mul_(lr * radius / _norm(update)))
        parameter.mul_(radius / _norm(parameter))


def _norm(matrix: Tensor) -> Tensor:
    """Frobenius norm; its sum in fp64, so that a radius does not wander."""
    return torch.linalg.vector_norm(matrix, dtype=torch.float64).clamp_min(1e-30).float()


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of a matrix U S V^T, singular values between 0.7 and 1.2; in dtype.

    Five steps of a Newton-Schulz iteration, which is all that torch.optim.Muon does, too.
    """
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x
