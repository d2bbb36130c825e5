"""The operations in C++ and OpenMP (kernels.cpp), called through ctypes.

Under torch.compile the reference takes over, which the compiler fuses itself, and so it does for
tensors that are neither fp32 nor bf16 or lie on another device.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.ops.fused.build import NotBuilt, built
from megatron_ngpt.ops.fused.interface import Pair
from megatron_ngpt.ops.fused.reference import REFERENCE, Reference
from megatron_ngpt.ops.rope import Style

_SMALL = 1 << 14
"""Elements below which waking other threads costs more than it saves."""


class Cpp(Reference):
    """``engine.ops = cpp``; see ``interface.Operations`` for shapes."""

    name = "cpp"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    @staticmethod
    @cache
    def load() -> Cpp:
        """Compiled now unless it is on disk.

        Raises:
            NotBuilt: there is no compiler, or it failed.
        """
        try:
            return Cpp(ctypes.CDLL(str(built())))
        except OSError as err:
            raise NotBuilt(f"the fused operations cannot be loaded ({err})") from err

    def unit(self, x: Tensor, eps: float) -> Tensor:
        """One pass."""
        if not _suits(x):
            return REFERENCE.unit(x, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._rows("ngpt_unit", x, [x, out], eps)
        return out

    def unit_backward(self, grad: Tensor, x: Tensor, eps: float) -> Tensor:
        """One pass."""
        if not _suits(grad, x):
            return REFERENCE.unit_backward(grad, x, eps)
        grad, x = grad.contiguous(), x.contiguous()
        out = torch.empty_like(x)
        self._rows("ngpt_unit_backward", x, [grad, x, out], eps)
        return out

    def residual_step(self, h: Tensor, branch: Tensor, alpha: Tensor, eps: float) -> Tensor:
        """Reads h and branch, writes the result."""
        if not _suits(h, branch):
            return REFERENCE.residual_step(h, branch, alpha, eps)
        h, branch = h.contiguous(), branch.contiguous()
        out = torch.empty_like(h)
        self._rows("ngpt_residual_step", h, [h, branch, _vector(alpha, h), out], eps)
        return out

    def residual_step_backward(
        self, grad: Tensor, h: Tensor, branch: Tensor, alpha: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reads three, writes two."""
        if not _suits(grad, h, branch):
            return REFERENCE.residual_step_backward(grad, h, branch, alpha, eps)
        grad, h, branch = grad.contiguous(), h.contiguous(), branch.contiguous()
        made = torch.empty_like(h), torch.empty_like(branch), _sums(h)
        self._rows(
            "ngpt_residual_step_backward", h, [grad, h, branch, _vector(alpha, h), *made], eps
        )
        return made

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """One pass."""
        if not _suits(x):
            return REFERENCE.rms_norm(x, gain, eps)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._rows("ngpt_rms_norm", x, [x, _vector(gain, x), out], eps)
        return out

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, gain: Tensor, eps: float, beside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One pass, the other gradient of x included."""
        if not _suits(grad, x) or not (beside is None or _suits(grad, beside)):
            return REFERENCE.rms_norm_backward(grad, x, gain, eps, beside)
        grad, x = grad.contiguous(), x.contiguous()
        beside = None if beside is None else beside.contiguous()
        made = torch.empty_like(x), _sums(x)
        self._rows("ngpt_rms_norm_backward", x, [grad, beside, x, _vector(gain, x), *made], eps)
        return made

    def rotary(
        self, x: Tensor, table: Tensor, scale: Tensor | None, normed: bool, style: Style
    ) -> Tensor:
        """One pass."""
        if not _suits(x):
            return REFERENCE.rotary(x, table, scale, normed, style)
        x = _heads_whole(x)
        scale = None if scale is None else _matrix(scale, x)
        table = table.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        at = _rotation(x, x, table, normed, style)
        self._call("ngpt_rotary", x, [x, table, scale, out], at)
        return out

    def rotary_backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        table: Tensor,
        scale: Tensor | None,
        normed: bool,
        style: Style,
    ) -> Pair:
        """One pass."""
        if not _suits(grad, grad if x is None else x):
            return REFERENCE.rotary_backward(grad, x, table, scale, normed, style)
        grad = _heads_whole(grad)
        x = grad if x is None else _heads_whole(x)
        scale = None if scale is None else _matrix(scale, x)
        table = table.contiguous()
        out = torch.empty(grad.shape, dtype=grad.dtype)
        grad_scale = None if scale is None else torch.empty_like(scale)
        at = _rotation(x, grad, table, normed, style)
        self._call("ngpt_rotary_backward", grad, [grad, x, table, scale, out, grad_scale], at)
        return out, grad_scale

    def swiglu(self, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None) -> Tensor:
        """Reads u and v, writes one."""
        if not _suits(u, v):
            return REFERENCE.swiglu(u, v, s_u, s_v)
        u, v = u.contiguous(), v.contiguous()
        out = torch.empty_like(u)
        self._rows("ngpt_swiglu", u, [u, v, _maybe(s_u, u), _maybe(s_v, u), out])
        return out

    def swiglu_backward(
        self, grad: Tensor, u: Tensor, v: Tensor, s_u: Tensor | None, s_v: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Reads three, writes two."""
        if not _suits(grad, u, v):
            return REFERENCE.swiglu_backward(grad, u, v, s_u, s_v)
        grad, u, v = grad.contiguous(), u.contiguous(), v.contiguous()
        made = torch.empty_like(u), torch.empty_like(v)
        sums = (None, None) if s_u is None else (_sums(u), _sums(u))
        scales = [_maybe(s_u, u), _maybe(s_v, u)]
        self._rows("ngpt_swiglu_backward", u, [grad, u, v, *scales, *made, *sums])
        return *made, *sums

    def squared_relu(self, u: Tensor, s_u: Tensor | None) -> Tensor:
        """One pass."""
        if not _suits(u):
            return REFERENCE.squared_relu(u, s_u)
        u = u.contiguous()
        out = torch.empty_like(u)
        self._rows("ngpt_squared_relu", u, [u, _maybe(s_u, u), out])
        return out

    def squared_relu_backward(self, grad: Tensor, u: Tensor, s_u: Tensor | None) -> Pair:
        """One pass."""
        if not _suits(grad, u):
            return REFERENCE.squared_relu_backward(grad, u, s_u)
        grad, u = grad.contiguous(), u.contiguous()
        out, sums = torch.empty_like(u), None if s_u is None else _sums(u)
        self._rows("ngpt_squared_relu_backward", u, [grad, u, _maybe(s_u, u), out, sums])
        return out, sums

    def exponentials(self, u: Tensor, real: int) -> tuple[Tensor, Tensor]:
        """One pass, of which the caches serve half."""
        if not _suits(u) or u.dtype != torch.float32 or not u.is_contiguous():
            return REFERENCE.exponentials(u, real)
        made = torch.empty(len(u)), torch.empty(len(u))
        self._plain("ngpt_exponentials", [u, *made], [len(u), real, u.shape[1], _threads(u)])
        return made

    def scale_rows(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """One pass."""
        if not _suits(x, y) or x.dtype != torch.float32 or not x.is_contiguous():
            return REFERENCE.scale_rows(x, y, scale)
        sums = torch.empty(len(x))
        self._plain(
            "ngpt_scale_rows",
            [x, y.contiguous(), scale.contiguous(), sums],
            [*x.shape, _threads(x)],
        )
        return sums

    def softmax_sums(self, u: Tensor, scale: Tensor | None, real: int) -> tuple[Tensor, Tensor]:
        """One pass, of which the first cache serves half."""
        if not _suits(u) or u.dtype != torch.float32:
            return REFERENCE.softmax_sums(u, scale, real)
        u = u.contiguous()
        made = torch.empty(len(u)), torch.empty(len(u))
        sizes = [len(u), real, u.shape[1], _threads(u)]
        self._plain("ngpt_softmax_sums", [u, _maybe(scale, u), *made], sizes)
        return made

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
        """One pass."""
        if not _suits(u) or u.dtype != torch.float32 or not u.is_contiguous():
            return REFERENCE.softmax_gradient(u, scale, slope, sums, weight, column, real)
        grad_scale = None if scale is None else _sums(u)
        vectors = [_maybe(scale, u), _maybe(slope, u), *sums, weight, column]
        vectors = [None if x is None else x.contiguous() for x in vectors]
        sizes = [len(u), real, u.shape[1], _threads(u)]
        self._plain("ngpt_softmax_gradient", [u, *vectors, grad_scale], sizes)
        return grad_scale

    def _rows(self, name: str, x: Tensor, tensors: list[Tensor | None], *numbers: float) -> None:
        """A function of the rows of x [..., D] and what belongs to them."""
        width = x.shape[-1]
        rows = x.numel() // max(1, width)
        sizes = [ctypes.c_int64(rows), ctypes.c_int64(width), *map(ctypes.c_float, numbers)]
        self._call(name, x, tensors, *sizes)

    def _call(self, name: str, x: Tensor, tensors: list[Tensor | None], *rest: Any) -> None:
        pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
        getattr(self.library, name)(int(x.dtype == torch.bfloat16), *pointers, *rest, _threads(x))

    def _plain(self, name: str, tensors: list[Tensor | None], sizes: list[int]) -> None:
        pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
        *numbers, threads = sizes
        getattr(self.library, name)(*pointers, *map(ctypes.c_int64, numbers), threads)


def _suits(*tensors: Tensor) -> bool:
    """Whether the library can work on them: one of two dtypes, the same in all."""
    first = tensors[0]
    if torch.compiler.is_compiling() or first.dtype not in (torch.float32, torch.bfloat16):
        return False
    return all(t.device.type == "cpu" and t.dtype == first.dtype and t.numel() for t in tensors)


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < _SMALL else torch.get_num_threads()


def _vector(scale: Tensor, x: Tensor) -> Tensor:
    """One number per element of a row of x, in fp32."""
    return scale.float().expand(x.shape[-1]).contiguous()


def _maybe(scale: Tensor | None, x: Tensor) -> Tensor | None:
    return None if scale is None else _vector(scale, x)


def _matrix(scale: Tensor, x: Tensor) -> Tensor:
    """One number per head and dimension."""
    return scale.float().expand(x.shape[2:]).contiguous()


def _sums(x: Tensor) -> Tensor:
    return torch.empty(x.shape[-1])


def _heads_whole(x: Tensor) -> Tensor:
    """x [B, T, heads, H] of which the H values of a head lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _rotation(x: Tensor, grad: Tensor, table: Tensor, normed: bool, style: Style) -> ctypes.Array:
    """Sizes and distances that both rotary functions ask for."""
    turning = 2 * table.shape[-2]
    apart = table.shape[-4] * turning if table.dim() == 5 and table.shape[0] > 1 else 0
    numbers = (*x.shape, turning, *x.stride()[:3], *grad.stride()[:3], apart)
    return (ctypes.c_int64 * 14)(*numbers, int(normed), int(style == "half"))
