"""One record of a model's figures, with two collectives where it is cheap."""

from __future__ import annotations

import resource
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.vitals.motion import Motion
from megatron_ngpt.engine.vitals.scales import Scales
from megatron_ngpt.engine.vitals.spectra import spectra


class Vitals:
    """Looks at an engine's model every few steps; all ranks together.

    Between the steps at which it does, nothing is computed. One record costs two all-reduces: of
    1.5 kB a matrix and 16 bytes a scaling vector, and of 8 bytes a scaling vector.

    Args:
        engine: built; its optimizer is watched from now on.
        every: steps between records of what is cheap, 0 for never (``logging.vitals_every``).
        spectra_every: steps between spectra, 0 for never (``logging.spectra_every``).
        last: the last step, whose spectra are taken, too.
    """

    def __init__(self, engine: Engine, every: int, spectra_every: int, last: int = 0) -> None:
        self.engine, self.last = engine, last
        self.every, self.spectra_every = every, spectra_every
        if self.every:
            self.scales = Scales(engine.masters, engine.config.model)
            self.motion = Motion(engine.masters)

    def expect(self, step: int) -> None:
        """The step that comes next."""
        if self.every and step % self.every == 0:
            self.motion.expect()

    def taken(self, step: int, grad_norm: float) -> dict[str, Any]:
        """Figures after a step; empty where none are due. Collective."""
        found: dict[str, Any] = {}
        if self.every and self.motion.expected:
            self.motion.expected = False
            if self.motion.stepped:
                found = self._cheap(grad_norm)
        if self.spectra_every and (step % self.spectra_every == 0 or step == self.last):
            found |= spectra(self.engine.masters)
        return found

    def _cheap(self, grad_norm: float) -> dict[str, Any]:
        motion, (sums, largest) = self.motion, self.scales.local()
        motion.add_up()
        parts = [motion.sums, motion.squares, sums]
        motion.sums, motion.squares, sums = _reduced(parts, dist.ReduceOp.SUM)
        memory = torch.tensor(_peak(self.engine.mesh.device)).to(motion.stretch)
        parts = [largest, motion.stretch, memory]
        largest, stretch, memory = _reduced(parts, dist.ReduceOp.MAX)
        told = self.scales.told(sums, largest)
        logits = {"logit_scale": told.pop("logit_scale")} if "logit_scale" in told else {}
        moved = motion.told(grad_norm, float(stretch))
        return {"scales": told} | logits | moved | {"memory_bytes": int(memory)}


def _reduced(parts: list[Tensor], op: Any) -> list[Tensor]:
    """Each part over all ranks, in one message."""
    whole = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(whole, op=op)
    pieces = whole.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def _peak(device: torch.device) -> float:
    """Most memory that this rank ever held, bytes: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
