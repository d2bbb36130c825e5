"""Which room of a step each moment of a torch.profiler trace belongs to.

Rooms are told apart by names that are there anyway: kernels of products and attention by theirs,
nGPT's operations by those of their ``autograd.Function`` classes, however they are implemented, and
the rest by the ranges of :mod:`megatron_ngpt.profiling.ranges`. A node of the backward belongs
where the operation of the forward with the same sequence number does.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from megatron_ngpt.profiling.ranges import DATA, LOSS, MODEL, OPTIMIZER, PROJECTION, STEP

PRODUCTS, ATTENTION = "products", "attention"
ENGINE, OTHER, OUTSIDE = "engine", "model, other", ""
BACKWARD = " backward"
_PRODUCT = re.compile(r"aten::(mm|addmm|bmm|baddbmm|mv|addmv|_scaled_mm)|mkldnn::.*linear.*")
_ATTENTION = re.compile(r"\w+::_?(scaled_dot_product|(flash|efficient)_att(entio)?n)\w*")
_RANGES = {DATA: "data", PROJECTION: "projection", OPTIMIZER: "optimizer", LOSS: "loss"}
_RANGES |= {MODEL: OTHER, STEP: ENGINE}
_FUNCTION = re.compile(r"_([A-Z]\w*?)(Backward)?")  # this project's begin so, torch's do not
_OTHER_NAMES = {"HeadLoss": "loss", "Attention": ATTENTION, "JoinedLinear": PRODUCTS}
_NODE = "autograd::engine::evaluate_function: "


def by_room(events: Iterable[Any], on_gpu: bool) -> dict[str, float]:
    """Microseconds of each room over all steps of a trace, largest first.

    Args:
        events: of a finished ``torch.profiler.profile``.
        on_gpu: count the time of the kernels that an event launched, instead of its own on the CPU.
    """
    events = [e for e in events if "CPU" in str(e.device_type)]
    forward = _forward_rooms(events)
    found: dict[str, float] = defaultdict(float)
    for event in events:
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        room = _room(event, forward)
        if time and room != OUTSIDE:
            found[room] += time
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _forward_rooms(events: list[Any]) -> dict[int, str]:
    """Sequence number of an operation of the forward -> its room."""
    found: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _in_backward(event):
            room = _room(event, {})
            if room not in (ENGINE, OUTSIDE):
                found[event.sequence_nr] = room  # the innermost of several comes last
    return found


def _in_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(_NODE):
            return True
        event = event.cpu_parent
    return False


def _room(event: Any, forward: dict[int, str]) -> str:
    while event is not None:
        if room := _by_name(event, forward):
            return room
        event = event.cpu_parent
    return OUTSIDE


def _by_name(event: Any, forward: dict[int, str]) -> str:
    """What an event's own name says, empty for nothing."""
    name = event.name
    if _PRODUCT.fullmatch(name):
        return PRODUCTS
    if _ATTENTION.fullmatch(name):
        return ATTENTION
    if name in _RANGES or name.startswith(OPTIMIZER):
        return _RANGES.get(name, "optimizer")
    if name.startswith(_NODE):
        return _of_node(name.removeprefix(_NODE), event.sequence_nr, forward)
    if function := _FUNCTION.fullmatch(name):
        return _named(function[1], bool(function[2]))
    return OUTSIDE


def _of_node(node: str, sequence_nr: int, forward: dict[int, str]) -> str:
    if node == "torch::autograd::AccumulateGrad":
        return ENGINE  # with its hooks: DeepSpeed's copies
    if (function := _FUNCTION.fullmatch(node)) and function[2]:
        return _named(function[1], True)
    room = forward.get(sequence_nr, OTHER)
    return room if room in (PRODUCTS, ATTENTION, OTHER) else room.removesuffix(BACKWARD) + BACKWARD


def _named(function: str, backward: bool) -> str:
    room = _OTHER_NAMES.get(function, function)
    return room + BACKWARD if backward and room not in (PRODUCTS, ATTENTION) else room
