"""The operations in torch: runs everywhere, in every dtype, and is what the others are held to.

Written to keep little for the backward and to make few passes, as far as torch allows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.ops.fused.interface import Pair
from megatron_ngpt.ops.lengths import length, unit, unit_backward
from megatron_ngpt.ops.rope import Style, inverse, rotate


class Reference:
    """``engine.ops = reference``; see ``interface.Operations`` for shapes."""

    name = "reference"

    def unit(self, x: Tensor, eps: float) -> Tensor:
        """``x / (|x| + eps)``."""
        return unit(x, eps=eps)

    def unit_backward(self, grad: Tensor, x: Tensor, eps: float) -> Tensor:
        """As in ``lengths.unit_backward``."""
        x32 = x.float()
        lengths = length(x32)
        return unit_backward(grad.float(), x32 / (lengths + eps), lengths, eps).to(x.dtype)

    def residual_step(self, h: Tensor, branch: Tensor, alpha: Tensor, eps: float) -> Tensor:
        """With unit vectors a, b of h and branch: s = a + |alpha| (b - a), and unit(s)."""
        s = torch.lerp(unit(h.float()), unit(branch.float(), eps=eps), alpha.abs())
        return unit(s).to(h.dtype)

    def residual_step_backward(
        self, grad: Tensor, h: Tensor, branch: Tensor, alpha: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Back through the three normalisations."""
        length_h, length_branch = length(h.float()), length(branch.float())
        a, b, step = h / length_h, branch / (length_branch + eps), alpha.abs()
        s = torch.lerp(a, b, step)
        length_s = length(s)
        grad_s = unit_backward(grad.float(), s.div_(length_s), length_s)
        grad_alpha = (torch.sub(b, a) * grad_s).flatten(0, -2).sum(0) * alpha.sign()
        grad_b = grad_s * step
        grad_branch = unit_backward(grad_b, b, length_branch, eps)
        grad_h = unit_backward(grad_s.sub_(grad_b), a, length_h)
        return grad_h.to(h.dtype), grad_branch.to(branch.dtype), grad_alpha

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """arXiv 1910.07467."""
        normalised, _ = _by_rms(x, eps)
        return (normalised * gain).to(x.dtype)

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, gain: Tensor, eps: float, beside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """With n = x / rms: (g gain - n mean(g gain n)) / rms."""
        normalised, by_rms = _by_rms(x, eps)
        grad_gain = (grad * normalised).flatten(0, -2).sum(0)
        grad = grad * gain
        along = (grad * normalised).mean(-1, keepdim=True)
        grad_x = torch.addcmul(grad, normalised, along, value=-1).mul_(by_rms)
        if beside is not None:
            grad_x += beside
        return grad_x.to(x.dtype), grad_gain

    def rotary(
        self, x: Tensor, table: Tensor, scale: Tensor | None, normed: bool, style: Style
    ) -> Tensor:
        """Rotate, then norm, then scale."""
        turned = rotate(x, table, style)
        turned = unit(turned) if normed else turned
        return (turned if scale is None else turned * scale).to(x.dtype)

    def rotary_backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        table: Tensor,
        scale: Tensor | None,
        normed: bool,
        style: Style,
    ) -> Pair:
        """The transpose of a rotation turns back."""
        dtype, grad, grad_scale = grad.dtype, grad.float(), None
        if normed:
            assert x is not None
            turned = rotate(x, table, style)
            lengths = length(turned)
            turned = turned / lengths  # no rotation at all may return x itself
            if scale is not None:
                grad_scale = (grad * turned).flatten(0, -3).sum(0)
                grad = grad * scale
            grad = unit_backward(grad, turned, lengths)
        return rotate(grad, inverse(table), style).to(dtype), grad_scale

    def swiglu(self, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None) -> Tensor:
        """arXiv 2002.05202."""
        return (_scaled(u, s_u) * F.silu(_scaled(v, s_v))).to(u.dtype)

    def swiglu_backward(
        self, grad: Tensor, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """silu(x) = x sigmoid(x), whose derivative is sigmoid(x) (1 + x (1 - sigmoid(x)))."""
        grad, gate = grad.float(), _scaled(v, s_v)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        del gate  # few of these fp32 tensors at a time
        slope = (1 - sigmoid).mul_(silu).add_(sigmoid)
        del sigmoid
        grad_u, grad_v = silu.mul_(grad), slope.mul_(grad).mul_(_scaled(u, s_u))
        return (
            _scaled(grad_u, s_u).to(u.dtype),
            _scaled(grad_v, s_v).to(v.dtype),
            None if s_u is None else (grad_u * u).flatten(0, -2).sum(0),
            None if s_v is None else (grad_v * v).flatten(0, -2).sum(0),
        )

    def squared_relu(self, u: Tensor, s_u: Tensor | None) -> Tensor:
        """arXiv 2109.08668."""
        return _scaled(u, s_u).relu().square().to(u.dtype)

    def squared_relu_backward(self, grad: Tensor, u: Tensor, s_u: Tensor | None) -> Pair:
        """2 relu(s u) s g."""
        grad = _scaled(u, s_u).relu().mul_(2).mul_(grad)
        grad_s = None if s_u is None else (grad * u).flatten(0, -2).sum(0)
        return _scaled(grad, s_u).to(u.dtype), grad_s

    def exponentials(self, u: Tensor, real: int) -> tuple[Tensor, Tensor]:
        """Without columns the largest is -inf and the sum 0."""
        z = u[:, :real]
        largest = z.amax(-1) if real else z.new_full((len(z),), float("-inf"))
        z.sub_(largest[:, None]).exp_()
        u[:, real:] = 0.0
        return largest, z.sum(-1)

    def scale_rows(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """Two passes."""
        sums = (x * y).sum(-1)
        x.mul_(scale[:, None])
        return sums

    def softmax_sums(self, u: Tensor, scale: Tensor | None, real: int) -> tuple[Tensor, Tensor]:
        """Without columns the largest is -inf and the sum 0."""
        z = _scaled(u, scale)[:, :real]
        largest = z.amax(-1) if real else z.new_full((len(z),), float("-inf"))
        shifted = z - largest[:, None] if scale is None else z.sub_(largest[:, None])
        return largest, shifted.exp_().sum(-1)

    def softmax_gradient(
        self,
        u: Tensor,
        scale: Tensor | None,
        slope: Tensor | None,
        sums: tuple[Tensor, Tensor],
        weight: Tensor,
        column: Tensor,
        real: int,
    ) -> Tensor | None:
        """weight * (softmax - 1 at the target)."""
        largest, total = sums
        z = u if scale is None else u * scale  # the only other tensor of this size
        grad = z.sub_(largest[:, None]).exp_().mul_((weight / total)[:, None])
        own = torch.where(column >= 0, weight, 0.0)
        grad.scatter_add_(1, column.clamp_min(0)[:, None], -own[:, None])
        grad[weight == 0] = 0.0
        grad[:, real:] = 0.0
        if scale is None or slope is None:
            return None
        grad_scale = u.mul_(grad).sum(0)
        torch.mul(grad, slope, out=u)
        return grad_scale


REFERENCE = Reference()


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x.float() if scale is None else x * scale


def _by_rms(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """fp32 x / rms(x), and 1 / rms(x)."""
    x32 = x.float()
    by_rms = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
    return x32 * by_rms, by_rms
