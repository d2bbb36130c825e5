"""``index.json``: which box of which tensor lies in which file, and how to know a file is whole.

Without torch: what is in a checkpoint can be told at once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.run.durable import INDEX, DamagedCheckpoint

FORMAT = 1
MASTER = "master"
AVERAGES = ("exp_avg", "exp_avg_sq")
"""Kinds of tensors: ``master/NAME`` and what Adam keeps of each."""
_CHUNK, _THREADS = 1 << 24, 2
