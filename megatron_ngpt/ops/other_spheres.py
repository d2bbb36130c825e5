"""Variants of nGPT's operations: grouped and soft spheres, a step along the arc.

Plain autograd; the operations of nGPT itself, in hypersphere.py, keep less for the backward.
Source: nGPT-pytorch 0.2.16; arXiv 2410.01131, section 2.2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ngpt.ops.lengths import length, unit


def soft_unit(x: Tensor, groups: int, slack: float) -> Tensor:
    """Scale each of ``groups`` equal parts of the last dimension into 1 - slack to 1 + slack.

    Lengths within these bounds stay, others become the nearer bound; the gradient takes the bound
    for a constant, as in nGPT-pytorch. Same shape and dtype, accumulated in fp32.
    """
    parts = x.float().unflatten(-1, (groups, -1))
    lengths = length(parts)
    bound = lengths.detach().clamp(1 - slack, 1 + slack)
    return (parts * (bound / lengths)).flatten(-2).to(x.dtype)


def step_from_anywhere(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """``unit(h + |alpha| (unit(branch) - h))`` for an h whose length means something.

    An embedding of several groups or with slack is such an h. Arguments as in
    :func:`megatron_ngpt.ops.hypersphere.residual_step`.
    """
    here = h.float()
    return unit(here + alpha.abs() * (unit(branch.float(), eps=eps) - here)).to(h.dtype)


def step_along_arc(h: Tensor, branch: Tensor, alpha: Tensor, eps: float = 0.0) -> Tensor:
    """SLERP: ``sin((1 - a) t) / sin(t) h + sin(a t) / sin(t) b`` with t the angle between units.

    a is |alpha|, per dimension, so the result is brought back to length 1. Written with the unit
    tangent, which holds at small angles too. Arguments as in
    :func:`megatron_ngpt.ops.hypersphere.residual_step`.
    """
    here, there = unit(h.float()), unit(branch.float(), eps=eps)
    cosine = (here * there).sum(-1, keepdim=True)
    tangent = there - cosine * here
    sine = length(tangent)
    angle = alpha.abs() * torch.atan2(sine, cosine)
    return unit(angle.cos() * here + angle.sin() * (tangent / sine)).to(h.dtype)
