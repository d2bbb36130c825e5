"""AdamW on CPU that leaves the projection its sums of squares: one pass over the master shard.

The second pass scales. Both are C++ (adamw.cpp), built and kept as ``ops/fused`` builds its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from megatron_ngpt.engine.adamw import Uncompiled
from megatron_ngpt.ops.fused.build import NotBuilt, built

_SMALL = 1 << 14
"""Elements below which waking other threads costs more than it saves."""

NONE = 2
"""In place of a ``norm_dim``: no vectors to sum."""


class Piece(NamedTuple):
    """A matrix inside a flat parameter whose vectors, or parts of them, are summed."""

    offset: int
    """Of its first element."""
    rows: int
    cols: int
    stride: int
    """Elements from one row to the next."""
    norm_dim: int
    """Dimension of the piece along which its vectors lie; :data:`NONE` for none."""
    squares: Tensor | None
    """A sum for each vector, fp32, added to."""
    bits: Tensor | None
    """The same of the bits that the step finds, int32, for checksums."""

    @classmethod
    def of(
        cls,
        values: Tensor,
        offset: int,
        norm_dim: int,
        squares: Tensor | None,
        bits: Tensor | None = None,
    ) -> Piece:
        """A view of one or two dimensions that begins at ``offset`` of its flat tensor."""
        rows, cols = values.shape if values.dim() == 2 else (1, len(values))
        return cls(offset, rows, cols, values.stride(0), norm_dim, squares, bits)


class _Rule(ctypes.Structure):
    names = ("first", "second", "step_size", "correction", "eps", "kept", "scale")
    _fields_ = [(name, ctypes.c_float) for name in names]


@cache
def load() -> ctypes.CDLL:
    """The library, compiled now unless it is on disk.

    Raises:
        NotBuilt: there is no compiler, or it failed.
    """
    try:
        return ctypes.CDLL(str(built(Path(__file__).with_name("adamw.cpp"))))
    except OSError as err:
        raise NotBuilt(f"the fused optimizer cannot be loaded ({err})") from err


class FusedAdamW(Uncompiled):
    """Decoupled AdamW as torch's, fp32 on CPU; its state has the same names.

    Attributes set from outside:
        pieces: of a flat parameter's id; without them all of it is one piece without vectors.
        scale: what gradients are multiplied by in the next step, to clip them; 1 after it.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.pieces: Mapping[int, Sequence[Piece]] = {}
        self.scale = 1.0
        self.library = load()

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
                    self._update(parameter, group)
        self.scale = 1.0
        return None

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        rule = self._rule(float(state["step"]), group)
        assert parameter.grad is not None
        laid_out = (parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
        assert all(t.dtype == torch.float32 and t.is_contiguous() for t in laid_out)
        begins = [t.data_ptr() for t in laid_out]
        for piece in self.pieces.get(id(parameter)) or [_whole(parameter)]:
            at = [ctypes.c_void_p(begin + 4 * piece.offset) for begin in begins]
            sums = _pointer(piece.squares), _pointer(piece.bits)
            self.library.ngpt_adamw(*at, *_shape(piece), *sums, rule, _threads(piece))

    def _rule(self, step: float, group: dict[str, Any]) -> Any:
        (first, second), lr = group["betas"], group["lr"]
        return ctypes.byref(
            _Rule(
                first=first,
                second=second,
                step_size=lr / (1 - first**step),
                correction=(1 - second**step) ** -0.5,
                eps=group["eps"],
                kept=1 - lr * group["weight_decay"],
                scale=self.scale,
            )
        )


def scale_vectors(
    values: Tensor, norm_dim: int, factor: Tensor, bits: Tensor | None = None
) -> None:
    """Multiply every vector of a matrix on CPU by its factor in place, one pass; add the bits that
    it has then to ``bits``, int32."""
    piece = Piece.of(values, 0, norm_dim, None)
    at, sums = ctypes.c_void_p(values.data_ptr()), (_pointer(factor), _pointer(bits))
    load().ngpt_scale(at, *_shape(piece), *sums, _threads(piece))


def _whole(parameter: Tensor) -> Piece:
    rows = parameter.shape[0] if parameter.dim() == 2 else 1
    cols = parameter.numel() // max(1, rows)
    return Piece(0, rows, cols, cols, NONE, None, None)


def _shape(piece: Piece) -> tuple[Any, ...]:
    sizes = map(ctypes.c_int64, (piece.rows, piece.cols, piece.stride))
    return (*sizes, piece.norm_dim)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _threads(piece: Piece) -> int:
    return 1 if piece.rows * piece.cols < _SMALL else torch.get_num_threads()
