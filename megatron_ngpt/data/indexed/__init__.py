"""Megatron's indexed dataset: a PREFIX.bin of tokens and a PREFIX.idx that says where they are."""

from megatron_ngpt.data.indexed.format import dtype_for
from megatron_ngpt.data.indexed.reader import IndexedDataset
from megatron_ngpt.data.indexed.writer import IndexedWriter

__all__ = ["IndexedDataset", "IndexedWriter", "dtype_for"]
