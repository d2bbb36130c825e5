"""Text to .bin/.idx pairs: shards, workers, resuming, merging."""

from megatron_ngpt.data.preprocess.job import PreprocessJob
from megatron_ngpt.data.preprocess.merge import Summary
from megatron_ngpt.data.preprocess.run import preprocess

__all__ = ["PreprocessJob", "Summary", "preprocess"]
