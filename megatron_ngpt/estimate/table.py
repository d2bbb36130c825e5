"""The degrees table: who is where, how much memory and communication a step takes; plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

from megatron_ngpt.config import Config
from megatron_ngpt.config.deepspeed import uses_low_precision_copy
from megatron_ngpt.estimate.memory import Memory, busiest, rank_memory
from megatron_ngpt.estimate.state import RankState
from megatron_ngpt.estimate.volume import sent_by_axis
from megatron_ngpt.extras import available
from megatron_ngpt.mesh.degrees import AXES, Degrees
from megatron_ngpt.model.spec import parameter_count
from megatron_ngpt.parallel.shard import local_rows
from megatron_ngpt.parallel.stages import stage_map

if TYPE_CHECKING:
    import torch

GIB, MIB = 1 << 30, 1 << 20
_SHOWN = 6  # pipeline ranks with a line of their own; of more, the ends and the largest


def degrees_table(config: Config, degrees: Degrees, notes: Sequence[str] = ()) -> str:
    """About a dozen lines about a run on these degrees.

    Args:
        config: the run's.
        degrees: checked by ``parallel.plan.check_topology``.
        notes: what else differs from what was asked for.
    """
    memory = [rank_memory(config, degrees, index) for index in range(degrees.pp)]
    worst = max(range(degrees.pp), key=lambda index: memory[index].total)
    lines = [
        _headline(config, degrees),
        *_groups(degrees),
        *_pipeline_ranks(config, degrees, memory, worst),
        f"memory      {memory_line(memory[worst])} a rank"
        + (f" of pp {worst}" if degrees.pp > 1 else ""),
        *_step(config, degrees, worst),
        *(f"note        {note}" for note in (*differences(config, degrees), *notes)),
    ]
    return "\n".join(lines)


def _headline(config: Config, degrees: Degrees) -> str:
    count = parameter_count(config.model)
    axes = " x ".join(f"{axis} {degree}" for axis, degree in zip(AXES, degrees.shape, strict=True))
    return (
        f"{config.model.architecture} {_count(count)} parameters, {config.train.dtype}, "
        f"ZeRO {config.optim.zero_stage}, {prod(degrees.shape)} ranks = {axes}"
    )


def _groups(degrees: Degrees) -> Iterator[str]:
    """Which global ranks belong together along tp, cp and dp."""
    world = prod(degrees.shape)
    for axis, apart in (("tp", 1), ("cp", degrees.tp), ("dp", degrees.tp * degrees.cp)):
        size = getattr(degrees, axis)
        if size > 1:
            first = ranks_of([apart * place for place in range(size)])
            how = f"; ulysses {degrees.ulysses}, ring {degrees.ring}" if axis == "cp" else ""
            yield f"{axis} groups   {world // size} of {size} ranks, the first: {first}{how}"


def ranks_of(ranks: Sequence[int]) -> str:
    """A few ranks in full, many by their first two and last."""
    if len(ranks) <= 4:
        return ", ".join(map(str, ranks))
    return f"{ranks[0]}, {ranks[1]} ... {ranks[-1]}"


def _pipeline_ranks(
    config: Config, degrees: Degrees, memory: Sequence[Memory], worst: int
) -> Iterator[str]:
    """A line per pipeline rank: its global ranks, layers, parameters and memory."""
    per_stage = degrees.dp * degrees.cp * degrees.tp
    shown = set(range(degrees.pp)) if degrees.pp <= _SHOWN else {0, 1, worst, degrees.pp - 1}
    left_out = False
    for index in range(degrees.pp):
        if index not in shown:
            left_out = True
            continue
        if left_out:
            yield "..."
            left_out = False
        first, last = index * per_stage, (index + 1) * per_stage - 1
        ranks = f"ranks {first}-{last}" if last > first else f"rank {first}"
        parameters = RankState.of(config, degrees, index).parameters
        yield (
            f"pp {index:<8} {ranks}: {_layers(config, index)}; {_count(parameters)} "
            f"parameters, {size(memory[index].total)} a rank"
        )


def _layers(config: Config, pp_index: int) -> str:
    """What the stages of a pipeline rank hold, in words."""
    stages, found = stage_map(config), []
    for part in (stages.parts[number] for number in stages.of_rank(pp_index)):
        held = ["embedding"] * part.first + _numbers(part.layers) + ["head"] * part.last
        found.append(" + ".join(held))
    return " | ".join(found)


def _numbers(layers: range) -> list[str]:
    if len(layers) > 1:
        return [f"layers {layers[0]}-{layers[-1]}"]
    return [f"layer {layer}" for layer in layers]


def memory_line(memory: Memory) -> str:
    """The parts of a rank's memory and their sum."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "buffers": memory.buffers,
    }
    told = " + ".join(f"{name} {size(part)}" for name, part in parts.items())
    return f"{told} = {size(memory.total)}"


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,}"


def _step(config: Config, degrees: Degrees, pp_index: int) -> Iterator[str]:
    train, seq_len = config.train, config.data.seq_len
    each = train.global_batch // (train.micro_batch * degrees.dp)
    yield (
        f"batch       {train.global_batch} sequences of {seq_len} tokens = "
        f"{train.global_batch * seq_len:,}; a rank: {each} micro-batches of {train.micro_batch}"
    )
    sent = sent_by_axis(config, degrees, pp_index)
    if sent:
        told = ", ".join(f"{axis} {size(part)}" for axis, part in sent.items())
        yield f"sends       {told} a rank and step"


def differences(config: Config, degrees: Degrees) -> Iterator[str]:
    """Where the run will not do literally what the configuration asks for."""
    if config.train.dtype == "bf16" and not uses_low_precision_copy(config):
        reason = "a pipeline" if degrees.pp > 1 else f"ZeRO {config.optim.zero_stage}"
        yield f"with {reason} bf16 runs keep fp32 weights and cast them where they are used"
    if config.optim.zero_stage and degrees.replicas == 1:
        alone = "" if config.engine.deepspeed_overrides else ": the step goes without DeepSpeed"
        yield f"dp = 1: ZeRO {config.optim.zero_stage} has no ranks to shard over{alone}"
    padded = degrees.tp * local_rows(config.model.vocab_size, degrees.tp)
    if padded != config.model.vocab_size:
        yield f"the vocabulary of {config.model.vocab_size} is padded to {padded} rows over tp"


def _operations(wanted: str, device: torch.device) -> str:
    """Which implementation, and why it is not the fastest."""
    from megatron_ngpt.ops.fused import pick_operations, why_reference

    name, why = pick_operations(wanted, device).name, why_reference(wanted, device)
    return f"operations: {name}" + (f", slower than need be: {why}" if why else "")


def device_notes(config: Config, degrees: Degrees, device: torch.device) -> Iterator[str]:
    """What this rank's device has to say about the plan, and who computes its operations.

    Raises:
        ValueError: not those that ``engine.ops`` asks for.
    """
    from megatron_ngpt.ops.linear import has_bf16_units

    if device.type == "cuda":
        yield from _gpu_notes(config, degrees, device)
    elif config.train.dtype == "bf16" and not has_bf16_units():
        yield (
            "this CPU has no units for bf16: products are computed in fp32, so that bf16 saves "
            "memory here, not time; train.dtype = fp32 is exact"
        )
    if config.train.deterministic:
        cost = "slower attention and sums" if device.type == "cuda" else "hardly any time on a CPU"
        yield f"train.deterministic: two runs on this machine are equal bit by bit, for {cost}"
    yield _operations(config.engine.ops, device)


def _gpu_notes(config: Config, degrees: Degrees, device: torch.device) -> Iterator[str]:
    import torch

    has = torch.cuda.get_device_properties(device).total_memory
    needs = busiest(config, degrees)[1].total
    if needs > has:
        yield (
            f"the estimate is above this GPU's {has / GIB:.1f} GiB: tools/estimate.py proposes "
            "topologies that fit"
        )
    wanted = config.engine.attention == "auto" and config.train.dtype == "bf16"
    if wanted and not available("flash_attn", "flash_attn_func"):
        yield "flash-attn is not installed: attention is torch's"
