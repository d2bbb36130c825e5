"""Where the time of a training step goes, and how near it is to what this machine can do.

    python tools/profile_step.py --config F.yaml [--trace T.json] [--section.field VALUE ...]

Trains with the real engine on the configuration's data, or on random ids without data.train, saves
nothing, and prints the share of each room: matrix products, attention, every operation of nGPT
forward and backward, loss, optimizer, projection, engine, data. Beside them stand the rates that
were achieved and those that the same products, the same attention and a copy out of cache achieve
bare in the same minute. The share of the limit is (products + attention, bare) / step.
The trace opens in https://ui.perfetto.dev. Exit code 2 for settings that cannot run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_ngpt.config import fit_micro_batch, parse_config
from megatron_ngpt.console import tool
from megatron_ngpt.data.documents import with_eod
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import Launch, finish, pick_device, start


def main(argv: Sequence[str] | None = None) -> int:
    """Profile and print; 2 when something asked for cannot be had."""
    options, rest = _options(argv)
    try:
        config = with_eod(parse_config(rest))
        degrees = Degrees.of(config.parallel, 1)
        config = fit_micro_batch(config, degrees.dp)
        from megatron_ngpt.mesh.mesh import Mesh
        from megatron_ngpt.profiling.measured import measure
        from megatron_ngpt.profiling.report import report

        device = pick_device(config.engine.device, 0)
        start(Launch(), device)
        found = measure(config, Mesh.build(degrees, device), options.steps, options.trace)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as err:
        print(f"profile_step.py: {err}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(found)) if options.json else report(found, config), flush=True)
    if options.trace:
        print(f"trace: {options.trace}", file=sys.stderr)
    return 0


def _options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=5, help="measured and profiled, each")
    parser.add_argument("--trace", type=Path, help="file for the trace of the profiled steps")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options, rest = parser.parse_known_args(argv)
    if options.steps < 1:
        parser.error("--steps must be positive")
    return options, rest


if __name__ == "__main__":
    finish(tool(main))
