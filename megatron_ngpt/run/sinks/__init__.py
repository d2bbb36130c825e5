"""Other programs that are told what a run does. One module each; none is imported unasked."""

from megatron_ngpt.run.sinks.sink import Sink, check_sinks, flat, open_sinks

__all__ = ["Sink", "check_sinks", "flat", "open_sinks"]
