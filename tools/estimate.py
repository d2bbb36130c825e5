"""What a run needs and which topologies fit, without a GPU.

    python tools/estimate.py --config F.yaml --gpus 64 --gpu-memory 80 [--section.field VALUE ...]

Prints the degrees table of the configured topology on that many GPUs, then topologies that fit,
best first, and why the first is. Exit code 1 when nothing fits, 2 for impossible settings. With
--failures-per-node-day and --step-seconds also the share of time that makes progress, and the
checkpoint.every that makes it largest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_ngpt.config import Config, parse_config
from megatron_ngpt.console import tool
from megatron_ngpt.estimate.goodput import Failures, best_interval, progress, told
from megatron_ngpt.estimate.propose import USABLE, Choice, Machine, Proposal, propose
from megatron_ngpt.estimate.table import GIB, degrees_table
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.parallel.plan import check_topology

LISTED = 8
SLURM_WAIT = 120
"""Seconds that SLURM keeps a requeued job back (docs/slurm.md)."""
FAILURES = (
    *("failures_per_node_day", "step_seconds", "queue_wait"),
    *("start_seconds", "save_stall", "write_seconds"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate and propose."""
    options, rest = _options(argv)
    config = parse_config(rest)
    machine = Machine(options.gpus, USABLE * options.gpu_memory * GIB, options.node)
    asked, refused = _asked(config, machine)
    choice = propose(config, machine)
    failures = _failures(options)
    if options.json:
        found = {
            "machine": asdict(machine),
            "asked": facts(asked, machine) if asked else None,
            "refused": refused,
            "proposals": [facts(proposal, machine) for proposal in choice.fitting],
            "reason": reason(choice, machine),
        }
        if failures:
            best = best_interval(failures, options.step_seconds)
            share = progress(failures, best * options.step_seconds)
            found["goodput"] = {**asdict(failures), "best_every": best, "progress": share}
        print(json.dumps(found, indent=1))
    else:
        print("\n".join([*_about(asked, refused, machine), "", *_list(choice, machine)]))
        if failures:
            print(f"\n{told(failures, options.step_seconds, config.checkpoint.every)}")
    return 0 if choice.fitting else 1


def _options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, required=True, help="ranks in all")
    parser.add_argument("--gpu-memory", type=float, default=80, help="GiB of each")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node; tp stays inside one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_failures(parser)
    options, rest = parser.parse_known_args(argv)
    if options.gpus < 1 or options.node < 1 or options.gpu_memory <= 0:
        parser.error("--gpus, --node and --gpu-memory must be positive")
    if (options.failures_per_node_day is None) != (options.step_seconds is None):
        parser.error("--failures-per-node-day and --step-seconds need each other")
    for name in FAILURES:
        if (getattr(options, name) or 0) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative")
    if options.step_seconds == 0:
        parser.error("--step-seconds must be positive")
    return options, rest


def _add_failures(parser: argparse.ArgumentParser) -> None:
    """Options of the goodput; all times as a person knows them."""
    group = parser.add_argument_group("failures", "how much of a job's time makes progress")
    add = group.add_argument
    add("--failures-per-node-day", type=float, metavar="F", help="0.004 for Llama 3's 405B run")
    add("--step-seconds", type=float, metavar="S", help="of one step, from metrics.jsonl")
    add("--queue-wait", type=float, default=0.5, metavar="H", help="hours after a requeue [0.5]")
    add("--start-seconds", type=float, default=120, help="from a job's start to a step [120]")
    add("--save-stall", type=float, default=1, help="seconds a save stops training [1]")
    add("--write-seconds", type=float, default=60, help="until a checkpoint is written [60]")


def _failures(options: argparse.Namespace) -> Failures | None:
    """What the options say of failures; None where they say nothing."""
    if options.step_seconds is None:
        return None
    return Failures(
        nodes=-(-options.gpus // options.node),
        per_node_day=options.failures_per_node_day,
        queue=SLURM_WAIT + 3600 * options.queue_wait,
        start=options.start_seconds,
        stall=options.save_stall,
        write=options.write_seconds,
    )


def _asked(config: Config, machine: Machine) -> tuple[Proposal | None, str]:
    """The configured topology, or why it cannot run."""
    try:
        degrees = Degrees.of(config.parallel, machine.gpus)
        check_topology(config, degrees)
        return Proposal(config, degrees), ""
    except ValueError as err:
        return None, str(err)


def facts(proposal: Proposal, machine: Machine) -> dict[str, Any]:
    """A proposal for JSON; sizes in bytes."""
    train, memory = proposal.config.train, proposal.memory
    return {
        **asdict(proposal.degrees),
        "zero_stage": proposal.config.optim.zero_stage,
        "micro_batch": train.micro_batch,
        "recompute": train.recompute,
        "memory": {**asdict(memory), "total": memory.total},
        "sent": proposal.sent,
        "idle": proposal.idle,
        "lost_seconds": proposal.lost(machine),
        "fits": memory.total <= machine.usable,
    }


def reason(choice: Choice, machine: Machine) -> str:
    """Why the first proposal comes first."""
    needs = [f"{p.name} ({p.memory.total / GIB:.1f} GiB)" for p in choice.too_large[:3]]
    if not choice.fitting:
        return "Nothing fits: " + ("; ".join(needs) or "no topology can run this batch")
    first = f"First choice: {choice.fitting[0].name}: it loses least"
    return f"{first} of what fits. Less, but too large: {'; '.join(needs)}" if needs else first


def _about(asked: Proposal | None, refused: str, machine: Machine) -> list[str]:
    if asked is None:
        return [f"refused: {refused}"]
    verdict = "fits" if asked.memory.total <= machine.usable else "DOES NOT FIT"
    return [
        degrees_table(asked.config, asked.degrees),
        f"{verdict} in {machine.usable / GIB:.1f} GiB, {USABLE:.0%} of a GPU",
    ]


def _list(choice: Choice, machine: Machine) -> list[str]:
    """One line per proposal, columns aligned; then how to read them."""
    shown = choice.fitting[:LISTED]
    width = max((len(proposal.name) for proposal in shown), default=0)
    lines = [f"{'what fits':{width}}  GiB a rank  lost s a step  idle  GiB sent a rank and step"]
    for proposal in shown:
        sent = ", ".join(f"{axis} {size / GIB:.1f}" for axis, size in proposal.sent.items())
        lines.append(
            f"{proposal.name:{width}}  {proposal.memory.total / GIB:10.1f}  "
            f"{proposal.lost(machine):13.2f}  {proposal.idle:4.0%}  {sent or 0}"
        )
    rates = (
        f"Lost: bytes sent at {machine.inside / 1e9:.0f} GB/s inside nodes of {machine.node} and "
        f"{machine.between / 1e9:.0f} GB/s a GPU between them, none of it hidden; recomputation "
        f"and idle time at {machine.flops / 1e12:.0f} TFLOP/s a GPU."
    )
    return [*lines, rates, reason(choice, machine)]


if __name__ == "__main__":
    raise SystemExit(tool(main))
