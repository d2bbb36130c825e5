"""What every implementation of the model's operations offers: plain functions, without autograd.

Autograd is in the modules that use them (``ops/hypersphere.py``, ``qk_norm.py``, ``activation.py``,
``norm.py``, ``loss.py``), each a function that keeps its inputs and calls a pair from here. So an
implementation, on whatever device, is this class and nothing else; ``reference.py`` says what each
of them has to compute.

Activations have any one dtype, and results that dtype; vectors of scales, tables and sums are fp32,
and so is all arithmetic. Inputs may lie in memory anyhow. N tokens, D width, F inner width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from megatron_ngpt.ops.rope import Style

Pair = tuple[Tensor, Tensor | None]


class Operations(Protocol):
    """One implementation of all of them."""

    @property
    def name(self) -> str:
        """As the start table and ``engine.ops`` call it."""

    def unit(self, x: Tensor, eps: float) -> Tensor:
        """``x / (|x| + eps)`` along the last dimension; a zero vector stays zero."""

    def unit_backward(self, grad: Tensor, x: Tensor, eps: float) -> Tensor:
        """Gradient of x."""

    def residual_step(self, h: Tensor, branch: Tensor, alpha: Tensor, eps: float) -> Tensor:
        """``unit(a + |alpha| (b - a))`` with a = unit(h), b = branch / (|branch| + eps).

        Args:
            h: [..., D].
            branch: [..., D].
            alpha: fp32, [D], [1] or [].
            eps: of the branch's normalisation.
        """

    def residual_step_backward(
        self, grad: Tensor, h: Tensor, branch: Tensor, alpha: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of h, branch, and alpha as if it were [D]."""

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x^2) + eps) * gain``; x [..., D], gain fp32 [D]."""

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, gain: Tensor, eps: float, beside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and gain; ``beside``, which reaches x by another way, is added to x's."""

    def rotary(
        self, x: Tensor, table: Tensor, scale: Tensor | None, normed: bool, style: Style
    ) -> Tensor:
        """``scale * unit(rotate(x))``, or ``rotate(x)`` alone where not normed.

        Args:
            x: [B, T, heads, H].
            table: from ``ops.rope.rotary_table``, [T, 1, R / 2, 2] or [B, T, 1, R / 2, 2].
            scale: fp32, [heads, H], [1] or []; None for 1. Only where normed.
            normed: whether every head's vector gets length 1.
            style: of the rotation.
        """

    def rotary_backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        table: Tensor,
        scale: Tensor | None,
        normed: bool,
        style: Style,
    ) -> Pair:
        """Gradients of x, which is not needed unless normed, and of the scale as [heads, H]."""

    def swiglu(self, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None) -> Tensor:
        """``(s_u u) silu(s_v v)``; u, v [..., F]; scales fp32 [F], [1] or [], None together."""

    def swiglu_backward(
        self, grad: Tensor, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Gradients of all four, those of the scales as [F]."""

    def squared_relu(self, u: Tensor, s_u: Tensor | None) -> Tensor:
        """``relu(s_u u)^2``; shapes as in :meth:`swiglu`."""

    def squared_relu_backward(self, grad: Tensor, u: Tensor, s_u: Tensor | None) -> Pair:
        """Gradients of both, that of the scale as [F]."""

    def exponentials(self, u: Tensor, real: int) -> tuple[Tensor, Tensor]:
        """Turn u, in place, row by row into ``exp(u - largest)``; the largest and sums, [N] both.

        Args:
            u: fp32 [N, V], contiguous.
            real: how many columns count; the rest becomes 0.
        """

    def scale_rows(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """``sum(x y)`` of every row, [V]; then x, in place, times its row's scale.

        Args:
            x: fp32 [V, D], contiguous.
            y: fp32 [V, D].
            scale: fp32 [V].
        """

    def softmax_sums(self, u: Tensor, scale: Tensor | None, real: int) -> tuple[Tensor, Tensor]:
        """Of every row of ``z = scale u``: the largest, and the sum of exp(z - largest); [N] both.

        Args:
            u: fp32 [N, V].
            scale: fp32 [V], None for 1.
            real: how many columns count; the rest is padding.
        """

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
        """Turn u, in place, into ``slope * dL/dz``, and return the gradient of the scale, [V].

        L is the sum over rows of weight * (log(total) + largest - z[column]).

        Args:
            u: fp32 [N, V], contiguous.
            scale: as in :meth:`softmax_sums`.
            slope: dz/du as the gradient of u is to have it, fp32 [V]; None with the scale.
            sums: largest and total of every row, over all the columns there are.
            weight: fp32 [N]; u becomes 0 where it is 0.
            column: int64 [N]; -1 where the target is not among these columns.
            real: columns that count; the gradient of the rest is 0.
        """
