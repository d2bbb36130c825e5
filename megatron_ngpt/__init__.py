"""megatron-ngpt: pretraining for nGPT, the normalized transformer (arXiv 2410.01131).

Rooms, each importing only those to its left: ``config -> mesh -> ops -> model -> parallel ->
engine -> train``; ``data`` imports only ``config``; ``interop`` knows other projects' weights.
"""

__version__ = "0.1.0"
