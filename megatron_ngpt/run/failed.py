"""How a run fails that was asked for nothing wrong."""

from __future__ import annotations


class RunFailed(Exception):
    """The run cannot go on; the message says why, so that no traceback is needed."""


class ReplicasDiffer(RunFailed):
    """Ranks that must hold the same parameter do not; the message names it and them."""


class SaveFailed(RunFailed):
    """A checkpoint could not be written; the message says on which rank and why."""


class BitsFlipped(RunFailed):
    """Memory has changed weights between two steps; the message says which, and whose memory."""
