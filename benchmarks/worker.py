"""A contestant in a process of its own: of another checkout, or with an allocator to itself.

    python benchmarks/worker.py ROOT NAME CONDITIONS

The packages are those of the checkout ROOT, which may be of another date than this file: two
versions of one package cannot live in one process. It builds contestant NAME, warms up, and for
each line on stdin does one step. Its answers are lines of JSON on stdout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(root: str, name: str, about: dict[str, Any]) -> None:
    """Answer once when warm, then once a step."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path[0] = root
    from benchmarks.contestants import Conditions, build
    from benchmarks.measure import Laps, with_peak_memory
    from benchmarks.shape import Shape
    from megatron_ngpt.config import ParallelConfig
    from megatron_ngpt.mesh.degrees import Degrees
    from megatron_ngpt.mesh.launch import Launch, pick_device, start
    from megatron_ngpt.mesh.mesh import Mesh

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    device = pick_device(about["device"], 0)
    start(Launch(), device)
    mesh = Mesh.build(Degrees.of(ParallelConfig(), 1), device)
    at = Conditions(Shape(**about["shape"]), about["dtype"], about["zero_stage"], mesh)
    if about["peers"]:
        at = dataclasses.replace(at, peers=Path(about["peers"]))

    def warmed_up() -> Any:
        contestant = build(name, at)
        contestant()
        contestant()
        return contestant

    contestant, peak = with_peak_memory(warmed_up, device)
    answer(parameters=contestant.parameters, peak_bytes=peak)
    for _ in sys.stdin:
        laps = Laps()
        laps.add(contestant, device)
        answer(wall=laps.wall[0], cpu=laps.cpu[0], losses=contestant.losses)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an orderly end
