"""How many flipped bits of normalised weights are found, by place in the number.

    python -m benchmarks.bit_flips [--width 1024] [--flips 100] [--seed 1]
    python -m benchmarks.bit_flips --cost S [--rounds 20]

Bits of the fp32 masters of a small model flip one at a time, at random places; then the optimizer
steps, in C++ where there is a compiler. Beside it what the lengths of the vectors alone would show:
how many flips bring one further from 1 than rounding ever does. Prints docs/watching.md's table.

With --cost, what looking for them takes: updates (AdamW, projection) of an engine that looks and of
one that does not, in turns, beside whole steps; CPU time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.measure import interleave
from benchmarks.shape import PRESETS, Shape
from megatron_ngpt.config import Config, ModelConfig, TrainConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import finish, read_launch, start
from megatron_ngpt.mesh.mesh import Mesh

ROUNDING = 2e-6
"""Further from 1 than any healthy vector: docs/watching.md has 3e-7 and less as unit_error."""

PLACES = [("sign", (31,))] + [
    (f"{kind}, bits {high} to {low}", tuple(range(low, high + 1)))
    for kind, high, low in (
        ("exponent", 30, 27), ("exponent", 26, 23), ("mantissa", 22, 19), ("mantissa", 18, 15),
        ("mantissa", 14, 11), ("mantissa", 10, 6), ("mantissa", 5, 0),
    )
]  # fmt: skip


class Flips:
    """A model whose weights can be damaged and brought back."""

    def __init__(self, width: int, seed: int) -> None:
        model = ModelConfig(
            width=width, layers=1, heads=2, kv_heads=1, head_dim=32, ffn_width=128, vocab_size=64
        )
        mesh = Mesh.build(Degrees(1, 1, 1, 1), torch.device("cpu"))
        config = Config(model=model, train=TrainConfig(steps=1, seed=seed))
        self.engine = Engine(config, mesh)
        self.random = torch.Generator().manual_seed(seed)
        self.masters = self.engine.masters
        self.pieces = [f for f in self.masters.fragments if f.spec.norm_dim is not None]
        for fragment in self.masters.fragments:
            fragment.flat.grad = torch.randn(fragment.flat.shape, generator=self.random) / width
        self.step()

    def step(self) -> list[str]:
        """An optimizer step with the same gradient; the vectors in which it found flipped bits."""
        self.masters.flipped.clear()
        self.engine.optimizer.step()
        return list(self.masters.flipped)

    def try_bit(self, bit: int) -> tuple[bool, bool]:
        """Flip it somewhere: was the right vector named, and is its length off?"""
        fragment = self.pieces[self._below(len(self.pieces))]
        values = fragment.master.view(fragment.shard.shape)
        row, column = (self._below(size) for size in values.shape)
        dim = fragment.spec.norm_dim or 0
        kept = values.clone()
        values.view(torch.int32)[row, column] ^= -(2**31) if bit == 31 else 1 << bit
        vector = values[row] if dim == 1 else values[:, column]
        length = float(vector.double().norm())
        number = row if dim == 1 else column
        named = self.step() == [f"{fragment.spec.name}, {('column', 'row')[dim]} {number}"]
        values.copy_(kept)
        self.masters.changed()
        return named, not abs(length - 1) <= ROUNDING

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.random))


def cost(shape: Shape, rounds: int) -> str:
    """How much longer an update takes, and which share of a step that is."""
    mesh, work = Mesh.build(Degrees(1, 1, 1, 1), torch.device("cpu")), {}
    config = shape.config("ngpt", "fp32", 1, 1)
    for name, check_bits in (("looks", True), ("plain", False)):
        engine = Engine(replace(config, train=replace(config.train, check_bits=check_bits)), mesh)
        for fragment in engine.masters.fragments:
            fragment.flat.grad = torch.full_like(fragment.flat, 1e-3)
        work[name] = engine.optimizer.step
    engine = Engine(config, mesh)
    ids = torch.randint(shape.vocab_size, (1, shape.micro_batch, shape.seq_len + 1))
    work["step"] = partial(engine.train_step, ids[..., :-1], ids[..., 1:], 1e-3)
    laps = {n: lap.after(2).cpu for n, lap in interleave(work, rounds + 2, mesh.device).items()}
    update, step = statistics.median(laps["plain"]), statistics.median(laps["step"])
    more = statistics.median(a - b for a, b in zip(laps["looks"], laps["plain"], strict=True))
    return (
        f"update {update * 1e3:.1f} ms, {more * 1e3:.2f} ms more when it looks: "
        f"{more / update:.1%}, {more / step:.2%} of a step of {step * 1e3:.0f} ms"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024, help="elements of a vector")
    parser.add_argument("--flips", type=int, default=100, help="of each bit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cost", choices=PRESETS, help="time updates of this shape instead")
    parser.add_argument("--rounds", type=int, default=20, help="of --cost")
    options = parser.parse_args(argv)
    start(read_launch(), torch.device("cpu"))
    if options.cost:
        print(cost(PRESETS[options.cost], options.rounds))
        finish()
        return 0
    flips = Flips(options.width, options.seed)
    print("| place | flips | named by the sums of bits | shown by the length alone |")
    print("| --- | --- | --- | --- |")
    whole = [0, 0, 0]
    for name, bits in PLACES:
        found = [flips.try_bit(bit) for bit in bits for _ in range(options.flips)]
        sums = [len(found), sum(one for one, _ in found), sum(two for _, two in found)]
        whole = [old + new for old, new in zip(whole, sums, strict=True)]
        print(_row(name, sums), flush=True)
    print(_row("all 32", whole))
    healthy = sum(bool(flips.step()) for _ in range(whole[0]))
    print(f"\n{healthy} of {whole[0]} steps without a flip named one; width {options.width}")
    finish()
    return 0


def _row(name: str, sums: list[int]) -> str:
    count, named, off = sums
    return f"| {name} | {count:,} | {named / count:.1%} | {off / count:.1%} |"


if __name__ == "__main__":
    raise SystemExit(main())
