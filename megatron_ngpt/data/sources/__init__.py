"""Documents out of text files: finding files, opening them, reading records."""

from megatron_ngpt.data.sources.files import Source, find_sources
from megatron_ngpt.data.sources.readers import FORMATS, Piece, read_piece
from megatron_ngpt.data.sources.records import Document, RecordBatch, Refusal, in_batches

__all__ = [
    "FORMATS",
    "Document",
    "Piece",
    "RecordBatch",
    "Refusal",
    "Source",
    "find_sources",
    "in_batches",
    "read_piece",
]
