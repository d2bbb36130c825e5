"""What a reader is, to those who try it."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from megatron_ngpt.run.durable import DamagedCheckpoint

OURS = (ValueError, FileNotFoundError, DamagedCheckpoint)
"""Errors that tell a user what is wrong with a file."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        seeds: content that is right.
        mutate: content that is nearly so.
        read: uses it in a folder of its own; raises nothing but OURS.
    """

    seeds: list[bytes]
    mutate: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes], object]
