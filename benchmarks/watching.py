"""What watching costs: a step, a step that is watched (vitals), and spectra, in turns.

    python -m benchmarks.watching [--preset S M] [--rounds 20] [--every 10 --spectra-every 500]

One process trains one engine; every round has a plain step, a watched one, and condition numbers of
all matrices once. The share is what the settings' intervals make of it, by CPU time and by the
clock: (watched - plain) / every + spectra / spectra_every, over a plain step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks.measure import Laps, interleave
from benchmarks.shape import PRESETS, Shape
from megatron_ngpt.config import LoggingConfig, ParallelConfig
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.vitals import Vitals
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import finish, pick_device, read_launch, start
from megatron_ngpt.mesh.mesh import Mesh


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = LoggingConfig()
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=["S"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--every", type=int, default=defaults.vitals_every)
    parser.add_argument("--spectra-every", type=int, default=defaults.spectra_every)
    options = parser.parse_args(argv)
    launch = read_launch()
    device = pick_device("auto", launch.local_rank)
    start(launch, device)
    mesh = Mesh.build(Degrees.of(ParallelConfig(), launch.world_size), device)
    print("| shape | by | step, ms | watched, ms more | spectra, ms | share |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.preset:
        laps = measure(PRESETS[name], mesh, options.rounds)
        for by in ("cpu", "wall"):
            print(_row(name, by, laps, options), flush=True)


def measure(shape: Shape, mesh: Mesh, rounds: int) -> dict[str, Laps]:
    """Seconds of a plain step, of one that is watched and of spectra."""
    config = shape.config("ngpt", "fp32", 1, mesh.degrees.dp)
    engine = Engine(config, mesh)
    vitals, only_spectra = Vitals(engine, 1, 0), Vitals(engine, 0, 1)
    ids = torch.randint(shape.vocab_size, (1, shape.micro_batch, shape.seq_len + 1))
    ids = ids.to(mesh.device)

    def plain() -> None:
        engine.train_step(ids[..., :-1], ids[..., 1:], 1e-3)

    def watched() -> None:
        vitals.expect(1)
        plain()
        assert vitals.taken(1, 1.0)

    work: dict[str, Callable[[], object]] = {"plain": plain, "watched": watched}
    work["spectra"] = lambda: only_spectra.taken(1, 1.0)
    laps = interleave(work, rounds + 2, mesh.device)
    engine.close()
    return {name: lap.after(2) for name, lap in laps.items()}


def _row(name: str, by: str, laps: dict[str, Laps], options: argparse.Namespace) -> str:
    plain = statistics.median(getattr(laps["plain"], by))
    # a round's two steps are neighbours in time
    pairs = zip(getattr(laps["watched"], by), getattr(laps["plain"], by), strict=True)
    more = statistics.median(w - p for w, p in pairs)
    spectra = statistics.median(getattr(laps["spectra"], by))
    share = (more / options.every + spectra / options.spectra_every) / plain
    words = [name, by, f"{plain * 1e3:.1f}", f"{more * 1e3:.2f}", f"{spectra * 1e3:.1f}"]
    return "| " + " | ".join([*words, f"{share:.2%}"]) + " |"


if __name__ == "__main__":
    main()
    finish(0)
