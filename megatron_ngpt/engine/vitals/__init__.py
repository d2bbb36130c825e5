"""What a model shows while it trains: scales, angles, gradients, spectra (docs/watching.md)."""

from megatron_ngpt.engine.vitals.vitals import Vitals

__all__ = ["Vitals"]
