"""What is in a checkpoint and whether it is whole, without loading the model.

    python tools/inspect_checkpoint.py DIR [--verify]

DIR is a checkpoint, a folder of checkpoints or a run's folder, of which the newest is taken. Exit
code 0 when it is whole, 1 when it is damaged, 2 when there is none that this version reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

from megatron_ngpt.console import tool
from megatron_ngpt.engine.checkpoint.index import (
    DTYPE_BYTES,
    MASTER,
    check_files,
    read_index,
)
from megatron_ngpt.plain_json import parse_object
from megatron_ngpt.run.checkpoints import STATE, find_checkpoint, read_progress
from megatron_ngpt.run.durable import DamagedCheckpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Print it all; the exit code tells the health."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="checkpoint, or folder of some")
    parser.add_argument("--verify", action="store_true", help="read every file for its checksum")
    options = parser.parse_args(argv)
    try:
        checkpoint = find_checkpoint(options.dir)
        content = read_index(checkpoint)
    except (FileNotFoundError, ValueError) as err:
        print(f"inspect_checkpoint.py: {err}", file=sys.stderr)
        return 2
    except DamagedCheckpoint as err:
        print(f"DAMAGED     {err}")
        return 1
    print("\n".join(describe(checkpoint, content)))
    problems = list(damage(checkpoint, content, options.verify))
    read = "sizes and checksums" if options.verify else "sizes (--verify reads checksums)"
    print("\n".join(f"DAMAGED     {problem}" for problem in problems) or f"whole       by {read}")
    return 1 if problems else 0


def damage(checkpoint: Path, content: dict, verify: bool) -> Iterator[str]:
    """Every file and tensor that is not as it was written."""
    for name in content["files"]:
        try:
            check_files(checkpoint, [name], content, verify)
        except (DamagedCheckpoint, OSError) as err:
            yield str(err)
    for name, tensor in content["tensors"].items():
        held = sum(prod(box["sizes"]) for box in tensor["boxes"])
        if held != prod(tensor["shape"]):
            yield f"{name}: its boxes hold {held} of {prod(tensor['shape'])} values"
    try:
        read_progress(checkpoint)
    except DamagedCheckpoint as err:
        yield str(err)


def describe(checkpoint: Path, content: dict) -> Iterator[str]:
    """Step, topology, sizes and parameters, a line each."""
    yield f"checkpoint  {checkpoint}"
    yield from _state(checkpoint)
    files, tensors = content["files"], content["tensors"]
    yield f"files       {len(files)}, {_size(sum(facts['size'] for facts in files.values()))}"
    kinds: dict[str, dict[str, dict]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        kinds.setdefault(kind, {})[rest] = tensor
    for kind, members in kinds.items():
        size = sum(prod(t["shape"]) * DTYPE_BYTES[t["dtype"]] for t in members.values())
        yield f"{kind:11} {len(members)} tensors, {_size(size)}"
    averages = [kind for kind in sorted(kinds) if kind not in (MASTER, "rng")]
    yield from _parameters(kinds.get(MASTER, {}), averages)


def _state(checkpoint: Path) -> Iterator[str]:
    """What ``state.json`` says; nothing when it cannot be read, which :func:`damage` tells."""
    try:
        state = parse_object((checkpoint / STATE).read_text(encoding="utf-8"))
        saved = datetime.fromtimestamp(state["saved_at"]).isoformat(" ", "seconds")
        yield f"step        {state['step']}, {state['tokens']:,} tokens, saved {saved}"
        topology = ", ".join(f"{name} {value}" for name, value in state["topology"].items())
        yield f"topology    {topology}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return


def _parameters(masters: dict[str, dict[str, Any]], averages: Sequence[str]) -> Iterator[str]:
    """A table of the parameters, in the order of their names."""
    total = sum(prod(tensor["shape"]) for tensor in masters.values())
    width = max((len(name) for name in masters), default=0)
    yield f"parameters  {total:,} in {len(masters)}, with {' and '.join(averages)}"
    yield f"  {'name':{width}}  {'shape':>14}  {'dtype':8}  boxes  size"
    for name, tensor in masters.items():
        shape = " x ".join(map(str, tensor["shape"]))
        size = _size(prod(tensor["shape"]) * DTYPE_BYTES[tensor["dtype"]])
        boxes = len(tensor["boxes"])
        yield f"  {name:{width}}  {shape:>14}  {tensor['dtype']:8}  {boxes:5}  {size}"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


if __name__ == "__main__":
    raise SystemExit(tool(main))
