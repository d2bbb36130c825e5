"""Mean and largest effective value of every scaling vector, whatever the topology."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.engine.masters import Masters
from megatron_ngpt.engine.vitals.names import SCALES, digits, kind_of, scale_of
from megatron_ngpt.model.attention.standard import rope_scaling


class Scales:
    """Absolute effective values: alpha_A and alpha_M are used so, the others stay positive.

    Args:
        masters: this rank's.
        model: the unsharded model.
    """

    def __init__(self, masters: Masters, model: ModelConfig) -> None:
        self.masters, self.model = masters, model
        self.names = [name for name in masters.table if kind_of(name)[0] in SCALES]
        self.pieces = [f for f in masters.fragments if f.spec.name in self.names and f.length]
        self.pieces = [f for f in self.pieces if masters.counts(f.spec.name)]
        self.at = torch.tensor([self.names.index(f.spec.name) for f in self.pieces])

    @torch.no_grad()
    def local(self) -> tuple[Tensor, Tensor]:
        """Of this rank's pieces: sums [2, scales] of |v| and v^2, fp64; largest |v| [scales]."""
        device = self.masters.mesh.device
        sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        largest = torch.zeros_like(sums[0])
        if self.pieces:
            values, at = [f.master for f in self.pieces], self.at.to(device)
            sums[0, at] = _norms(values, 1)
            sums[1, at] = _norms(values, 2).square()
            largest[at] = _norms(values, math.inf)
        return sums, largest

    def told(self, sums: Tensor, largest: Tensor) -> dict[str, dict[str, list[float]]]:
        """Mean and max over layers of every scale, and of the attention's logits, from whole sums.

        ``logit_scale`` is what multiplies the cosine of a query and a key, sqrt(head_dim) s_qk^2
        (eq. 15 to 17): its mean over dimensions, and the largest logit that there can be.
        """
        found: dict[str, dict[str, list[float]]] = {}
        squares: dict[int, tuple[float, float]] = {}
        figures = zip(*sums.tolist(), largest.tolist(), strict=True)
        learned = dict(zip(self.names, figures, strict=True))
        for kind, layer, name in self._all():
            scale = scale_of(self.model, kind, layer)
            if name in learned:
                total, square, most = learned[name]
                factor, count = abs(scale.init / scale.scale), self.masters.table[name].shape[0]
                mean, most, square = total / count, most * factor, square / count * factor**2
                mean *= factor
            else:
                mean, most, square = abs(scale.init), abs(scale.init), scale.init**2
            entry = found.setdefault(SCALES[kind][0], {"mean": [], "max": []})
            entry["mean"].append(digits(mean))
            entry["max"].append(digits(most))
            if kind == "attention.s_qk":
                squares[layer] = (square, most**2)
        return found | self._logits(squares)

    def _logits(self, squares: dict[int, tuple[float, float]]) -> dict[str, dict[str, list[float]]]:
        if not squares or not self.model.qk_norm:
            return {}
        root = self.model.map_dim**0.5 * rope_scaling(self.model).temperature
        means, most = zip(*(squares[layer] for layer in sorted(squares)), strict=True)
        values = {
            "mean": [digits(root * v) for v in means],
            "max": [digits(root * v) for v in most],
        }
        return {"logit_scale": values}

    def _all(self) -> list[tuple[str, int, str]]:
        """Kind, layer and parameter of every scale of the model, fixed ones too."""
        if not self.model.is_ngpt:
            return []
        gated = self.model.is_gated
        inside = [k for k in SCALES if k != "s_z" and (gated or k != "mlp.s_v")]
        layers = [
            (kind, layer, f"blocks.{layer}.{kind}.value")
            for kind in inside
            for layer in range(self.model.layers)
        ]
        return [*layers, ("s_z", 0, "s_z.value")]


def _norms(values: list[Tensor], order: float) -> Tensor:
    """Of each of some vectors, fp64 [vectors]."""
    return torch.stack(list(torch._foreach_norm(values, order))).double()
