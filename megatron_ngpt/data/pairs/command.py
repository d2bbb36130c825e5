"""How the tools for pairs end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from megatron_ngpt.data.indexed import IndexedWriter


def run(action: Callable[[], Iterable[IndexedWriter]]) -> int:
    """Do what a tool does and print the pairs it has made; 1 with a message when it is refused."""
    try:
        for made in action():
            counts = f"{made.document_count} documents, {made.token_count} tokens"
            print(f"{made.prefix}.bin, .idx: {counts}")
    except (ValueError, OSError, ModuleNotFoundError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no pair was written", file=sys.stderr)
        return 130
    return 0
