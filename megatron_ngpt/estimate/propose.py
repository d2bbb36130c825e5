"""Topologies that fit a number of GPUs, those that lose least time first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Literal

from megatron_ngpt.config import Config, check
from megatron_ngpt.estimate.memory import Memory, busiest
from megatron_ngpt.estimate.volume import sent_by_axis
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.parallel.plan import check_topology
from megatron_ngpt.parallel.stages import head_cost, stage_map

USABLE = 0.9
"""Share of a GPU's memory that a run may plan with: CUDA's context, NCCL's buffers and
fragmentation take the rest."""


@dataclass(frozen=True)
class Machine:
    """What a topology is weighed on. The rates are round figures for H100 nodes, not measured
    here; the order depends on their ratios."""

    gpus: int
    usable: float
    """Bytes of one GPU that a run may take."""
    node: int = 8
    """GPUs of one node; tensor parallelism does not leave it."""
    inside: float = 300e9
    """Bytes per second that a GPU sends inside its node: NVLink."""
    between: float = 40e9
    """Bytes per second that it sends to other nodes: a 400 Gb/s port of its own."""
    flops: float = 400e12
    """Floating-point operations per second in training: 40 % of dense bf16 peak."""


@dataclass(frozen=True)
class Proposal:
    """A topology with what it costs."""

    config: Config
    degrees: Degrees

    @cached_property
    def _busiest(self) -> tuple[int, Memory]:
        return busiest(self.config, self.degrees)

    @property
    def memory(self) -> Memory:
        """Of the busiest rank."""
        return self._busiest[1]

    @cached_property
    def sent(self) -> dict[str, int]:
        """Bytes that the busiest rank sends in a step, by axis."""
        return sent_by_axis(self.config, self.degrees, self._busiest[0])

    @property
    def idle(self) -> float:
        """Share of a step in which the average pipeline rank waits.

        For its turn, (pp - 1) / (micro-batches * stages per rank) of its work with 1F1B and
        interleaved (arXiv 2104.04473), nothing with the zero-bubble schedules; and for the rank
        with most layers, the head among them.
        """
        train, parallel = self.config.train, self.config.parallel
        micro_batches = train.global_batch // (train.micro_batch * self.degrees.dp)
        gaps = (parallel.pp - 1) / (micro_batches * parallel.stages_per_rank)
        if parallel.schedule in ("zero_bubble", "zbv"):
            gaps = 0.0
        stages, head = stage_map(self.config), head_cost(self.config)
        work = [
            sum(len(stages.parts[n].layers) + head * stages.parts[n].last for n in mine)
            for mine in map(stages.of_rank, range(parallel.pp))
        ]
        return 1 - sum(work) / len(work) / max(work) / (1 + gaps)

    def lost(self, machine: Machine) -> float:
        """Seconds of a step beyond computing it once: sending, if nothing hides it, computing
        again, waiting."""
        sending = sum(size / self._rate(axis, machine) for axis, size in self.sent.items())
        computing = step_flops(self.config) / machine.flops / machine.gpus
        again = computing / 3 if self.config.train.recompute else 0.0
        return sending + again + self.idle / (1 - self.idle) * (computing + again)

    def _rate(self, axis: str, machine: Machine) -> float:
        """Bytes per second of a rank in the groups of an axis.

        A ring through several nodes leaves each once, so that the members of a group on a node
        share their ports.
        """
        degrees = self.degrees
        # dp's collectives go over dp and cp
        ranks = degrees.replicas if axis == "dp" else getattr(degrees, axis)
        whole = degrees.tp * degrees.replicas
        apart = {"tp": 1, "cp": degrees.tp, "dp": degrees.tp, "pp": whole}[axis]
        if apart * ranks <= machine.node:
            return machine.inside
        together = 1 if axis == "pp" else max(1, machine.node // apart)
        return min(machine.inside, together * machine.between)

    @property
    def name(self) -> str:
        """What tells it from the others."""
        shown = ("dp", "cp", "tp", "pp") if self.degrees.cp > 1 else ("dp", "tp", "pp")
        axes = [f"{axis} {getattr(self.degrees, axis)}" for axis in shown]
        words = [*axes, f"ZeRO {self.config.optim.zero_stage}"]
        words.append(f"micro_batch {self.config.train.micro_batch}")
        return ", ".join(words + ["recompute"] * self.config.train.recompute)


def step_flops(config: Config) -> float:
    """Operations of one step over all ranks: 6 per matrix element and token, embedding apart, and
    causal attention's 6 L T Q per token and map (arXiv 2204.02311, appendix B, halved for the mask;
    queries padded to the width of the values)."""
    table = parameter_table(config.model)
    tied = ["embedding"] if config.model.tied_embedding else []
    groups = ("matrix", "head", *tied)
    matrices = sum(prod(s.shape) for s in table.values() if s.group in groups)
    model, seq_len = config.model, config.data.seq_len
    attention = model.layers * seq_len * model.maps * model.output_width
    return 6.0 * (matrices + attention) * config.train.global_batch * seq_len


@dataclass(frozen=True)
class Choice:
    """What :func:`propose` found."""

    fitting: list[Proposal]
    """Best first."""

    too_large: list[Proposal]
    """Those that would lose less time than the best but need more memory, best first."""


def propose(config: Config, machine: Machine) -> Choice:
    """Every topology for a run, each with the largest micro-batch up to the configured one that
    fits; degrees, ZeRO stage, micro-batch and recomputation are varied."""
    fitting: list[Proposal] = []
    too_large: list[Proposal] = []
    for wanted in _settings(config, machine):
        possible = list(_micro_batches(wanted, machine.gpus))
        fits = next((p for p in possible if p.memory.total <= machine.usable), None)
        if fits is not None:
            fitting.append(fits)
        else:
            too_large += possible[-1:]
    fitting.sort(key=lambda proposal: proposal.lost(machine))
    too_large.sort(key=lambda proposal: proposal.lost(machine))
    limit = fitting[0].lost(machine) if fitting else float("inf")
    return Choice(fitting, [p for p in too_large if p.lost(machine) < limit])


def _settings(config: Config, machine: Machine) -> Iterator[Config]:
    """All combinations of what is varied, possible or not."""
    pipelines = [n for n in range(1, config.model.layers + 1) if machine.gpus % n == 0]
    widths = [n for n in range(1, machine.node + 1) if machine.gpus % n == 0]
    stages: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    recompute = (True,) if config.train.recompute else (False, True)
    for pp, tp, stage, again in product(pipelines, widths, stages, recompute):
        if machine.gpus % (pp * tp * config.parallel.cp) == 0 and (pp == 1 or stage < 2):
            split = config.parallel.layers_per_stage if pp == config.parallel.pp else ()
            yield replace(
                config,
                parallel=replace(config.parallel, tp=tp, pp=pp, layers_per_stage=split),
                optim=replace(config.optim, zero_stage=stage),
                train=replace(config.train, recompute=again),
            )


def _micro_batches(config: Config, gpus: int) -> Iterator[Proposal]:
    """A configuration with each micro-batch that it can run with, largest first."""
    for size in range(config.train.micro_batch, 0, -1):
        asked = replace(config, train=replace(config.train, micro_batch=size))
        try:
            check(asked)
            degrees = Degrees.of(asked.parallel, gpus)
            check_topology(asked, degrees)
        except ValueError:
            continue
        yield Proposal(asked, degrees)
