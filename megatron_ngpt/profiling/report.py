"""A profile as a table for people."""

from __future__ import annotations

from megatron_ngpt.config import Config
from megatron_ngpt.profiling.measured import COPIED, Measured
from megatron_ngpt.profiling.rooms import ATTENTION, PRODUCTS


def report(found: Measured, config: Config) -> str:
    """The table and the rates under it."""
    lines = ["| room | ms a step | share | achieved |", "| --- | --- | --- | --- |"]
    for room, share in found.rooms.items():
        seconds = share * found.step
        lines.append(
            f"| {room} | {seconds * 1e3:.2f} | {share:.1%} | {_rate(found, room, seconds)} |"
        )
    flops = found.rate(found.flops, found.products) / 1e9
    copies = found.rate(2 * COPIED, found.copy) / 1e9  # read and written
    return "\n".join(
        [
            *lines,
            "",
            f"step of {config.model.architecture}: {found.step * 1e3:.1f} ms of {found.threads} "
            f"thread(s), {found.clock * 1e3:.1f} by the clock; all times without the profiler, "
            "shares from it",
            f"bare: products {found.products * 1e3:.1f} ms ({flops:.1f} GFLOP/s), attention "
            f"{found.attention * 1e3:.1f} ms, copies {copies:.1f} GB/s",
            f"the step takes {found.step / found.products:.2f} times its products; "
            f"share of the limit: {found.limit_share:.1%}",
        ]
    )


def _rate(found: Measured, room: str, seconds: float) -> str:
    if room == PRODUCTS:
        return f"{found.rate(found.flops, seconds) / 1e9:.1f} GFLOP/s"
    if room == ATTENTION:
        return f"{found.attention / seconds:.2f} of bare speed"
    if room in found.bytes:
        return f"{found.rate(found.bytes[room], seconds) / 1e9:.1f} GB/s"
    return ""
